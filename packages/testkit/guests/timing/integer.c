/* Integers: no floating point, 1 MiB working set. fib, which has no rounds, is of 32 instead of 40 where SHARE is large. */
#include "workload.h"

static u8 buf[1 << 20];
static u32 arr[1 << 16];

static u32 sieve(void)
{
	u32 count = 0;
	for (int round = 0; round < ROUNDS(150); round++) {
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
	for (int round = 0; round < ROUNDS(40); round++)
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
	for (int round = 0; round < ROUNDS(150); round++) {
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
	for (int round = 0; round < ROUNDS(1500); round++)
		for (int i = 0; i < 64; i++)
			for (int j = 0; j < 64; j++) {
				u32 s = 0;
				for (int k = 0; k < 64; k++) s += A[i][k] * B[k][j];
				C[i][j] = s;
				A[j][i] ^= s & 1;
			}
	return C[5][7];
}

void kmain(void)
{
	print("START\n");
	run("sieve", sieve);
	run("crc", crc);
	run("sort", sort);
	run("sha", sha);
	run("fib", fib);
	run("matrix", matrix);
	end();
}
