/*
 * Runs single x87 and SSE instructions on the processor at hand.
 *
 *   float-vectors CASES RESULTS
 *
 * Both files are arrays of the structures below, x87 cases first as told by their `kind`. An x87 case starts from FNINIT with
 * ST(1) and ST(0) loaded and ends with FNSAVE, which does not wait: unmasked exceptions are seen in the status word and never
 * trap. An SSE case runs with its MXCSR; when that traps, `trapped` is set and the destination is as it was.
 */
#define _GNU_SOURCE
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>

struct test_case {
	uint32_t kind, operation, control, pad;
	uint8_t a[16], b[16], memory[16];
};

struct result {
	uint32_t status, tags, flags, trapped;
	uint8_t a[16], b[16], memory[16];
	uint64_t integer, pad;
};

#define X87_OPERATIONS(X)                                                                                                      \
	X(0, "fadd %%st(1), %%st") X(1, "fmul %%st(1), %%st") X(2, "fsub %%st(1), %%st") X(3, "fsubr %%st(1), %%st")                     \
	X(4, "fdiv %%st(1), %%st") X(5, "fdivr %%st(1), %%st") X(6, "faddp") X(7, ".byte 0xde,0xe9") X(8, ".byte 0xde,0xe1")         \
	X(9, ".byte 0xde,0xf9") X(10, ".byte 0xde,0xf1") X(11, "fsqrt") X(12, "frndint") X(13, "fprem") X(14, "fprem1")          \
	X(15, "fscale") X(16, "fxtract") X(17, "fxam") X(18, "ftst") X(19, "fcom") X(20, "fucom") X(21, "fcompp")                \
	X(22, "fucompp") X(23, "fcomi %%st(1), %%st") X(24, "fucomi %%st(1), %%st") X(25, "fchs") X(26, "fabs") X(27, "fxch")        \
	X(28, "f2xm1") X(29, "fyl2x") X(30, "fyl2xp1") X(31, "fpatan") X(32, "fptan") X(33, "fsin") X(34, "fcos")                \
	X(35, "fsincos") X(36, "flds (%1)") X(37, "fldl (%1)") X(38, "fildl (%1)") X(39, "filds (%1)") X(40, "fildll (%1)")      \
	X(41, "fbld (%1)") X(42, "fsts (%1)") X(43, "fstl (%1)") X(44, "fistl (%1)") X(45, "fists (%1)") X(46, "fistpll (%1)")   \
	X(47, "fbstp (%1)") X(48, "fadds (%1)") X(49, "fmull (%1)") X(50, "fidivl (%1)") X(51, "fisubs (%1)")                    \
	X(52, "fcomps (%1)") X(53, "fld1") X(54, "fldl2t") X(55, "fldl2e") X(56, "fldpi") X(57, "fldlg2") X(58, "fldln2")        \
	X(59, "fldz") X(60, "fld %%st(1)") X(61, "fst %%st(3)") X(62, "fcmove %%st(1), %%st") X(63, "ffree %%st(1)")                  \
	X(64, "fincstp") X(65, "fdecstp") X(66, "fstps (%1)") X(67, "fstpt (%1)") X(68, "fcomip %%st(1), %%st")                    \
	X(69, "fadd %%st(4), %%st") X(70, "fxch %%st(4)") X(71, "fst %%st(1)") X(72, "fld %%st(5)") X(73, "ficoml (%1)")              \
	X(74, "fsubrs (%1)") X(75, "fdivrl (%1)")

static void run_x87(const struct test_case *c, struct result *r)
{
	static uint8_t image[108];
	uint16_t control = (uint16_t)c->control;
	uint8_t *memory = r->memory;
	uint64_t flags = 0;
	memcpy(memory, c->memory, 16);
	switch (c->operation) {
#define X(number, text)                                                                                                        \
	case number:                                                                                                           \
		__asm__ volatile("fninit\n fldt (%2)\n fldt (%3)\n fldcw (%4)\n pushq $0xad7\n popfq\n" text                      \
				 "\n pushfq\n popq %0\n fnsave (%5)\n fninit"                                                      \
				 : "=&r"(flags)                                                                                 \
				 : "r"(memory), "r"(c->b), "r"(c->a), "r"(&control), "r"(image)                                  \
				 : "memory", "cc");                                                                             \
		break;
		X87_OPERATIONS(X)
#undef X
	default:
		abort();
	}
	memcpy(&r->status, image + 4, 2);
	memcpy(&r->tags, image + 8, 2);
	memcpy(r->a, image + 28, 10);
	memcpy(r->b, image + 38, 10);
	r->flags = (uint32_t)flags;
}

#define SSE_OPERATIONS(X)                                                                                                      \
	X(0, "addps %%xmm1, %%xmm0") X(1, "addss %%xmm1, %%xmm0") X(2, "addpd %%xmm1, %%xmm0") X(3, "addsd %%xmm1, %%xmm0")      \
	X(4, "subps %%xmm1, %%xmm0") X(5, "subsd %%xmm1, %%xmm0") X(6, "mulps %%xmm1, %%xmm0") X(7, "mulpd %%xmm1, %%xmm0")      \
	X(8, "mulsd %%xmm1, %%xmm0") X(9, "divps %%xmm1, %%xmm0") X(10, "divpd %%xmm1, %%xmm0") X(11, "divss %%xmm1, %%xmm0")    \
	X(12, "minps %%xmm1, %%xmm0") X(13, "minsd %%xmm1, %%xmm0") X(14, "maxpd %%xmm1, %%xmm0") X(15, "maxss %%xmm1, %%xmm0")  \
	X(16, "sqrtps %%xmm1, %%xmm0") X(17, "sqrtpd %%xmm1, %%xmm0") X(18, "sqrtsd %%xmm1, %%xmm0")                             \
	X(19, "cmpeqps %%xmm1, %%xmm0") X(20, "cmpltps %%xmm1, %%xmm0") X(21, "cmplepd %%xmm1, %%xmm0")                          \
	X(22, "cmpunordsd %%xmm1, %%xmm0") X(23, "cmpneqps %%xmm1, %%xmm0") X(24, "cmpnltsd %%xmm1, %%xmm0")                     \
	X(25, "cmpnleps %%xmm1, %%xmm0") X(26, "cmpordpd %%xmm1, %%xmm0") X(27, "cvtps2pd %%xmm1, %%xmm0")                       \
	X(28, "cvtpd2ps %%xmm1, %%xmm0") X(29, "cvtss2sd %%xmm1, %%xmm0") X(30, "cvtsd2ss %%xmm1, %%xmm0")                       \
	X(31, "cvtps2dq %%xmm1, %%xmm0") X(32, "cvttps2dq %%xmm1, %%xmm0") X(33, "cvtpd2dq %%xmm1, %%xmm0")                      \
	X(34, "cvttpd2dq %%xmm1, %%xmm0") X(35, "cvtdq2ps %%xmm1, %%xmm0") X(36, "cvtsd2si %%xmm1, %%rax")                       \
	X(37, "cvttsd2si %%xmm1, %%rax") X(38, "cvtss2si %%xmm1, %%eax") X(39, "cvttss2si %%xmm1, %%rax")                        \
	X(40, "cvtsi2sd %%rax, %%xmm0") X(41, "cvtsi2ss %%rax, %%xmm0") X(42, "cvtsi2ss %%eax, %%xmm0")                          \
	X(43, "ucomisd %%xmm1, %%xmm0\n pushfq\n popq %%rax") X(44, "comiss %%xmm1, %%xmm0\n pushfq\n popq %%rax")               \
	X(45, "rcpps %%xmm1, %%xmm0") X(46, "rsqrtps %%xmm1, %%xmm0") X(47, "cvttsd2si %%xmm1, %%eax")

static sigjmp_buf escape;
static uint32_t trapped_mxcsr;

static void on_fpe(int signal, siginfo_t *info, void *context)
{
	(void)signal;
	(void)info;
	trapped_mxcsr = ((ucontext_t *)context)->uc_mcontext.fpregs->mxcsr;
	siglongjmp(escape, 1);
}

static void run_sse(const struct test_case *c, struct result *r)
{
	uint32_t control = c->control, after = 0, plain = 0x1f80;
	uint64_t rax;
	memcpy(&rax, c->memory, 8);
	memcpy(r->a, c->a, 16);
	if (sigsetjmp(escape, 1)) {
		__asm__ volatile("ldmxcsr %0" : : "m"(plain));
		r->trapped = 1;
		r->status = trapped_mxcsr;
		return;
	}
	switch (c->operation) {
#define X(number, text)                                                                                                        \
	case number:                                                                                                           \
		__asm__ volatile("movups (%3), %%xmm0\n movups (%4), %%xmm1\n ldmxcsr %5\n pushq $0xad7\n popfq\n" text            \
				 "\n stmxcsr %1\n ldmxcsr %6\n movups %%xmm0, (%2)"                                               \
				 : "+a"(rax), "=m"(after)                                                                        \
				 : "r"(r->a), "r"(c->a), "r"(c->b), "m"(control), "m"(plain)                                      \
				 : "memory", "cc", "xmm0", "xmm1");                                                              \
		break;
		SSE_OPERATIONS(X)
#undef X
	default:
		abort();
	}
	r->status = after;
	r->integer = rax;
}

int main(int argc, char **argv)
{
	struct sigaction action = { .sa_sigaction = on_fpe, .sa_flags = SA_SIGINFO | SA_NODEFER };
	struct test_case c;
	FILE *in, *out;

	if (argc != 3 || !(in = fopen(argv[1], "rb")) || !(out = fopen(argv[2], "wb")))
		return 2;
	sigaction(SIGFPE, &action, 0);
	while (fread(&c, sizeof c, 1, in) == 1) {
		struct result r;
		memset(&r, 0, sizeof r);
		if (c.kind == 0)
			run_x87(&c, &r);
		else
			run_sse(&c, &r);
		fwrite(&r, sizeof r, 1, out);
	}
	return fclose(out) != 0;
}
