/** The errnos that VAC returns, positive. VAC imports types only, so they stand here again. */
export const EIO = 5;
export const EAGAIN = 11;
export const EBUSY = 16;
export const EEXIST = 17;
export const EINVAL = 22;
export const ENOSPC = 28;
export const EOPNOTSUPP = 95;

/** Statuses of VMX instructions, as hw-x86's VmxStatus. */
export const VMX_SUCCEED = 0;
export const VMX_FAIL_INVALID = 1;
