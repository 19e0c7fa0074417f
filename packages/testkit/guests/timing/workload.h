/* What every timing guest has: the serial line, the functions that gcc may call, and the way a workload is reported. A guest prints
 * "START", one line "<name> <checksum in hex>" per workload, "END" on COM1 (0x3f8), then writes 0x10 to port 0xf4 and halts.
 * Checksums must not depend on the engine. SHARE divides the rounds of the workloads; ONLY, a string,
 * names the one workload to run. */
#ifndef SHARE
#define SHARE 1
#endif
#define ROUNDS(n) (((n) + SHARE - 1) / SHARE)
typedef unsigned int u32;
typedef unsigned char u8;
typedef unsigned long long u64;

static inline void outb(unsigned short port, u8 v) { __asm__ volatile("outb %0,%1" ::"a"(v), "Nd"(port)); }
static void put(char c) { outb(0x3f8, (u8)c); }
static void print(const char *s) { while (*s) put(*s++); }
static void print_hex(u32 v) { for (int i = 28; i >= 0; i -= 4) put("0123456789abcdef"[(v >> i) & 15]); }

void *memset(void *d, int c, unsigned long n) { u8 *p = d; while (n--) *p++ = (u8)c; return d; }
void *memcpy(void *d, const void *s, unsigned long n) { u8 *p = d; const u8 *q = s; while (n--) *p++ = *q++; return d; }

static int is_same(const char *a, const char *b) { while (*a && *a == *b) a++, b++; return *a == *b; }
static void run(const char *name, u32 (*work)(void))
{
#ifdef ONLY
	if (!is_same(name, ONLY)) return;
#endif
	u32 r = work();
	print(name); put(' '); print_hex(r); put('\n');
}
static void end(void)
{
	print("END\n");
	outb(0xf4, 0x10);
	for (;;) __asm__ volatile("cli; hlt");
}
