/*
 * Runs user-mode instruction sequences on the processor at hand: for each case of the input file it loads registers, flags,
 * FPU state and memory, lets the code run until it faults (cases end with INT3), and records what it left behind.
 *
 *   run-cases CASES RESULTS
 *
 * All happens in signal handlers: a case is started by returning from a signal with its registers in the frame, and ends with
 * the signal of its fault. Files are arrays of the structures below. Data lies in two writable pages at DATA with nothing
 * around them; code is copied to CODE. 16-bit cases see both at 0, through segments that are based there; their data segment
 * ends within the second page. Linux on x86-64 only.
 */
#define _GNU_SOURCE
#include <asm/ldt.h>
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <ucontext.h>
#include <unistd.h>

#define DATA 0x10000000UL
#define DATA_BYTES 8192
#define CODE 0x20000000UL
#define CODE_BYTES 4096
#define DATA16_LIMIT 0x1bff
/* The kernel's user segments, and those of the LDT that main makes */
#define CODE64_SELECTOR 0x33
#define CODE32_SELECTOR 0x23
#define DATA32_SELECTOR 0x2b
#define CODE16_SELECTOR 0x07
#define DATA16_SELECTOR 0x0f
#define CASE_CODE 112
#define TIMEOUT_TRAP 1000

struct test_case {
	uint64_t gpr[16];
	uint64_t rflags;
	uint32_t code_size; /* 64, 32 or 16 */
	uint32_t length;
	uint8_t code[CASE_CODE];
	uint8_t fx[512];
	uint8_t ymm[256]; /* upper halves */
};

struct result {
	uint64_t gpr[16];
	uint64_t rip, rflags, cr2;
	uint32_t vector, error;
	uint64_t memory;
	uint8_t fx[512];
	uint8_t ymm[256];
};

/* The frame's FPU state is an XSAVE area in the standard format, if this is in it; the header follows its 512 bytes. */
#define FRAME_MAGIC 0x46505853
#define XSTATE_AVX 4
#define YMM_AT 576

static const struct test_case *cases;
static struct result *results;
static long count, current = -1;
static uint8_t initial[DATA_BYTES];

/* Frame slots of the registers in encoding order. */
static const int slots[16] = { REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI,
			       REG_R8,  REG_R9,  REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15 };

/* FNV-1a over 32-bit words, two lanes. */
static uint64_t hash(const uint32_t *words, int n)
{
	uint32_t even = 2166136261u, odd = 2166136261u;
	for (int i = 0; i < n; i += 2) {
		even = (even ^ words[i]) * 16777619u;
		odd = (odd ^ words[i + 1]) * 16777619u;
	}
	return (uint64_t)odd << 32 | even;
}

/* The kernel's own fields at the end of the 512 bytes: a magic number, the frame's size, what is in it. */
static int has_extended(const uint8_t *fx)
{
	uint32_t magic;
	memcpy(&magic, fx + 464, 4);
	return magic == FRAME_MAGIC;
}

static uint64_t extended_features(const uint8_t *fx)
{
	uint64_t features;
	memcpy(&features, fx + 472, 8);
	return features;
}

static void finish(void)
{
	munmap(results, count * sizeof *results);
	_exit(0);
}

static void on_signal(int signal, siginfo_t *info, void *context)
{
	ucontext_t *frame = context;
	greg_t *gregs = frame->uc_mcontext.gregs;
	uint8_t *fx = (uint8_t *)frame->uc_mcontext.fpregs;
	(void)info;

	if (current >= 0) {
		struct result *result = &results[current];
		for (int i = 0; i < 16; i++)
			result->gpr[i] = gregs[slots[i]];
		result->rip = gregs[REG_RIP];
		result->rflags = gregs[REG_EFL];
		result->cr2 = gregs[REG_CR2];
		result->vector = signal == SIGVTALRM ? TIMEOUT_TRAP : gregs[REG_TRAPNO];
		result->error = gregs[REG_ERR];
		result->memory = hash((const uint32_t *)DATA, DATA_BYTES / 4);
		memcpy(result->fx, fx, 512);
		if (has_extended(fx) && (*(uint64_t *)(fx + 512) & XSTATE_AVX))
			memcpy(result->ymm, fx + YMM_AT, 256);
	}
	if (++current >= count)
		finish();

	const struct test_case *next = &cases[current];
	for (int i = 0; i < 16; i++)
		gregs[slots[i]] = next->gpr[i];
	int is16 = next->code_size == 16;
	gregs[REG_RIP] = is16 ? 0 : CODE;
	gregs[REG_EFL] = next->rflags;
	/* CS, GS, FS and SS are 16 bits each */
	uint64_t code = is16 ? CODE16_SELECTOR : next->code_size == 32 ? CODE32_SELECTOR : CODE64_SELECTOR;
	uint64_t data = is16 ? DATA16_SELECTOR : DATA32_SELECTOR;
	gregs[REG_CSGSFS] = (gregs[REG_CSGSFS] & 0x0000ffffffff0000L) | code | data << 48;
	/* In 64-bit mode these do not matter and are null, but other cases need them; returning from a signal leaves them alone */
	__asm__ volatile("mov %0, %%ds; mov %0, %%es" : : "r"((uint32_t)data));
	memcpy(fx, next->fx, 464); /* what follows describes the frame */
	/* MXCSR_MASK is the processor's; the header says that state is not in its initial form */
	if (has_extended(fx)) {
		*(uint64_t *)(fx + 512) |= 3;
		if (extended_features(fx) & XSTATE_AVX) {
			*(uint64_t *)(fx + 512) |= XSTATE_AVX;
			memcpy(fx + YMM_AT, next->ymm, 256);
		}
	}
	memcpy((void *)DATA, initial, DATA_BYTES);
	memset((void *)CODE, 0xcc, CODE_BYTES);
	memcpy((void *)CODE, next->code, next->length);
	struct itimerval timer = { { 0, 0 }, { 0, 100000 } };
	setitimer(ITIMER_VIRTUAL, &timer, NULL);
}

static void *map_file(const char *path, int flags, int protection, long *bytes)
{
	int fd = open(path, flags, 0600);
	struct stat status;
	if (fd < 0 || (*bytes > 0 && ftruncate(fd, *bytes)) || fstat(fd, &status)) {
		perror(path);
		exit(1);
	}
	*bytes = status.st_size;
	void *at = mmap(NULL, *bytes, protection, MAP_SHARED, fd, 0);
	if (at == MAP_FAILED) {
		perror(path);
		exit(1);
	}
	return at;
}

int main(int argc, char **argv)
{
	static uint8_t stack[65536];
	long bytes = 0;
	if (argc != 3) {
		fprintf(stderr, "usage: run-cases CASES RESULTS\n");
		return 2;
	}
	/* The file begins with the initial contents of the data pages */
	const uint8_t *input = map_file(argv[1], O_RDONLY, PROT_READ, &bytes);
	memcpy(initial, input, DATA_BYTES);
	cases = (const struct test_case *)(input + DATA_BYTES);
	count = (bytes - DATA_BYTES) / sizeof *cases;
	bytes = count * sizeof *results;
	results = map_file(argv[2], O_RDWR | O_CREAT, PROT_READ | PROT_WRITE, &bytes);

	if (mmap((void *)DATA, DATA_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == MAP_FAILED ||
	    mmap((void *)CODE, CODE_BYTES, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) ==
		    MAP_FAILED) {
		perror("mmap");
		return 1;
	}
	stack_t alternate = { .ss_sp = stack, .ss_size = sizeof stack };
	sigaltstack(&alternate, NULL);
	struct sigaction action = { .sa_sigaction = on_signal, .sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER };
	sigfillset(&action.sa_mask);
	int signals[] = { SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGTRAP, SIGVTALRM, SIGUSR1 };
	for (unsigned i = 0; i < sizeof signals / sizeof *signals; i++)
		sigaction(signals[i], &action, NULL);
	int has16 = 0;
	for (long i = 0; i < count; i++)
		has16 |= cases[i].code_size == 16;
	struct user_desc code16 = { .entry_number = 0, .base_addr = CODE, .limit = 0xffff, .contents = 2, .useable = 1 };
	struct user_desc data16 = { .entry_number = 1, .base_addr = DATA, .limit = DATA16_LIMIT, .contents = 0, .useable = 1 };
	if (has16 &&
	    (syscall(SYS_modify_ldt, 1, &code16, sizeof code16) || syscall(SYS_modify_ldt, 1, &data16, sizeof data16))) {
		perror("modify_ldt");
		return 1;
	}
	raise(SIGUSR1);
	return 1;
}
