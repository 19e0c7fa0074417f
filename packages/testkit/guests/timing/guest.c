/* A bare-metal guest for timing CPU engines. It prints "START", one line per workload, "END" on COM1 (0x3f8),
 * then writes 0x10 to port 0xf4 and halts. Each line is "<name> <checksum in hex>"; the checksum must not depend on the engine.
 * No interrupts, no floating point, 1 MiB working set. SHARE divides the rounds of every workload; fib, which has none, is of 32 instead of 40. */
#ifndef SHARE
#define SHARE 1
#endif
typedef unsigned int u32;
typedef unsigned char u8;

static inline void outb(unsigned short port, u8 v) { __asm__ volatile("outb %0,%1" ::"a"(v), "Nd"(port)); }
static void put(char c) { outb(0x3f8, (u8)c); }
static void print(const char *s) { while (*s) put(*s++); }
static void print_hex(u32 v) { for (int i = 28; i >= 0; i -= 4) put("0123456789abcdef"[(v >> i) & 15]); }

static u8 buf[1 << 20];
static u32 arr[1 << 16];

void *memset(void *d, int c, unsigned long n) { u8 *p = d; while (n--) *p++ = (u8)c; return d; }
void *memcpy(void *d, const void *s, unsigned long n) { u8 *p = d; const u8 *q = s; while (n--) *p++ = *q++; return d; }

static u32 sieve(void)
{
	u32 count = 0;
	for (int round = 0; round < (150 + SHARE - 1) / SHARE; round++) {
		count = 0;
		for (u32 i = 0; i < sizeof buf; i++) buf[i] = 1;
		for (u32 i = 2; i < sizeof buf; i++)
			if (buf[i]) { count++; for (u32 j = i * 2; j < sizeof buf; j += i) buf[j] = 0; }
	}
	return count;
}

static u32 crc(void)
{
	u32 c = ~0u;
	for (int round = 0; round < (40 + SHARE - 1) / SHARE; round++)
		for (u32 i = 0; i < sizeof buf; i++) { c ^= buf[i]; for (int k = 0; k < 8; k++) c = (c >> 1) ^ (0xedb88320 & -(c & 1)); }
	return c;
}

static void quicksort(u32 *a, int l, int r)
{
	while (l < r) {
		u32 pivot = a[(l + r) / 2];
		int i = l, j = r;
		while (i <= j) {
			while (a[i] < pivot) i++;
			while (a[j] > pivot) j--;
			if (i <= j) { u32 t = a[i]; a[i] = a[j]; a[j] = t; i++; j--; }
		}
		if (j - l < r - i) { quicksort(a, l, j); l = i; } else { quicksort(a, i, r); r = j; }
	}
}

static u32 sort(void)
{
	u32 s = 1, x = 0;
	for (int round = 0; round < (150 + SHARE - 1) / SHARE; round++) {
		for (int i = 0; i < (1 << 16); i++) { s ^= s << 13; s ^= s >> 17; s ^= s << 5; arr[i] = s; }
		quicksort(arr, 0, (1 << 16) - 1);
		x ^= arr[1000];
	}
	return x;
}

static u32 ror(u32 x, int n) { return x >> n | x << (32 - n); }
static u32 sha(void)
{
	static const u32 k[8] = {0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5};
	u32 h[8] = {1, 2, 3, 4, 5, 6, 7, 8}, w[64];
	for (u32 block = 0; block < 600000 / SHARE; block++) {
		for (int i = 0; i < 16; i++) w[i] = ((u32 *)buf)[(block * 16 + i) & 0x3ffff] + block;
		for (int i = 16; i < 64; i++)
			w[i] = w[i - 16] + w[i - 7] + (ror(w[i - 15], 7) ^ ror(w[i - 15], 18) ^ (w[i - 15] >> 3)) + (ror(w[i - 2], 17) ^ ror(w[i - 2], 19) ^ (w[i - 2] >> 10));
		u32 a = h[0], b = h[1], c = h[2], d = h[3], e = h[4], f = h[5], g = h[6], l = h[7];
		for (int i = 0; i < 64; i++) {
			u32 t1 = l + (ror(e, 6) ^ ror(e, 11) ^ ror(e, 25)) + ((e & f) ^ (~e & g)) + k[i & 7] + w[i];
			u32 t2 = (ror(a, 2) ^ ror(a, 13) ^ ror(a, 22)) + ((a & b) ^ (a & c) ^ (b & c));
			l = g; g = f; f = e; e = d + t1; d = c; c = b; b = a; a = t1 + t2;
		}
		h[0] += a; h[1] += b; h[2] += c; h[3] += d; h[4] += e; h[5] += f; h[6] += g; h[7] += l;
	}
	return h[0] ^ h[5];
}

static u32 fib_of(u32 n) { return n < 2 ? n : fib_of(n - 1) + fib_of(n - 2); }
static u32 fib(void) { return fib_of(SHARE > 8 ? 32 : 40); }

static u32 matrix(void)
{
	static u32 A[64][64], B[64][64], C[64][64];
	for (int i = 0; i < 64; i++) for (int j = 0; j < 64; j++) { A[i][j] = i * j; B[i][j] = i + j; }
	for (int round = 0; round < (1500 + SHARE - 1) / SHARE; round++)
		for (int i = 0; i < 64; i++)
			for (int j = 0; j < 64; j++) {
				u32 s = 0;
				for (int k = 0; k < 64; k++) s += A[i][k] * B[k][j];
				C[i][j] = s;
				A[j][i] ^= s & 1;
			}
	return C[5][7];
}

static void run(const char *name, u32 (*work)(void)) { u32 r = work(); print(name); put(' '); print_hex(r); put('\n'); }

void kmain(void)
{
	print("START\n");
	run("sieve", sieve);
	run("crc", crc);
	run("sort", sort);
	run("sha", sha);
	run("fib", fib);
	run("matrix", matrix);
	print("END\n");
	outb(0xf4, 0x10);
	for (;;) __asm__ volatile("cli; hlt");
}
