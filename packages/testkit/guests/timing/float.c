/* Scalar floating point: doubles and singles, division and square roots, comparisons, conversions. */
#include "workload.h"

static u32 mix_double(u32 hash, double value)
{
	u64 bits;
	__builtin_memcpy(&bits, &value, 8);
	return (hash ^ (u32)bits ^ (u32)(bits >> 32)) * 16777619u;
}
/* Clears MXCSR's flags, so that a workload meets them as a new process does. */
static void clear_flags(void) { __builtin_ia32_ldmxcsr(0x1f80); }

struct body { double x[3], v[3], mass; };
/* Five bodies that attract each other: products, sums, a root and a division for each pair. */
static u32 nbody(void)
{
	static struct body bodies[5] = {
		{{0, 0, 0}, {0, 0, 0}, 39.478},
		{{4.841, -1.160, -0.104}, {0.606, 2.812, -0.025}, 0.0377},
		{{8.343, 4.125, -0.404}, {-1.011, 1.825, 0.008}, 0.0113},
		{{12.894, -15.111, -0.223}, {1.083, 0.869, -0.011}, 0.0017},
		{{15.380, -25.919, 0.179}, {0.979, 0.594, -0.035}, 0.0020},
	};
	clear_flags();
	for (int step = 0; step < ROUNDS(400000); step++) {
		for (int i = 0; i < 5; i++)
			for (int j = i + 1; j < 5; j++) {
				struct body *a = &bodies[i], *b = &bodies[j];
				double d[3], square = 0;
				for (int k = 0; k < 3; k++) { d[k] = a->x[k] - b->x[k]; square += d[k] * d[k]; }
				double pull = 0.001 / (square * __builtin_sqrt(square));
				for (int k = 0; k < 3; k++) { a->v[k] -= d[k] * b->mass * pull; b->v[k] += d[k] * a->mass * pull; }
			}
		for (int i = 0; i < 5; i++)
			for (int k = 0; k < 3; k++) bodies[i].x[k] += 0.001 * bodies[i].v[k];
	}
	u32 hash = 0;
	for (int i = 0; i < 5; i++) for (int k = 0; k < 3; k++) hash = mix_double(hash, bodies[i].x[k]);
	return hash;
}

/* Products and sums in registers, and one comparison a round. */
static u32 mandel(void)
{
	u32 total = 0;
	clear_flags();
	for (int round = 0; round < ROUNDS(16); round++)
		for (int row = 0; row < 128; row++)
			for (int column = 0; column < 128; column++) {
				double cx = column / 64.0 - 1.5, cy = row / 64.0 - 1.0 + round / 512.0, x = 0, y = 0;
				int count = 0;
				while (count < 200 && x * x + y * y < 4.0) {
					double next = x * x - y * y + cx;
					y = 2 * x * y + cy;
					x = next;
					count++;
				}
				total = total * 31 + count;
			}
	return total;
}

/* Singles in memory: dot products and y += a * x. */
static u32 dot(void)
{
	static float x[4096], y[4096];
	for (int i = 0; i < 4096; i++) { x[i] = (i % 97) * 0.013f - 0.5f; y[i] = (i % 89) * 0.011f - 0.4f; }
	u32 hash = 0;
	clear_flags();
	for (int round = 0; round < ROUNDS(4000); round++) {
		float sum = 0;
		for (int i = 0; i < 4096; i++) sum += x[i] * y[i];
		float factor = sum > 100.0f ? -0.001f : 0.001f;
		for (int i = 0; i < 4096; i++) y[i] += factor * x[i];
		hash = mix_double(hash, sum);
	}
	return hash;
}

/* Integers to floats and back, both float formats, smallest and largest. */
static u32 convert(void)
{
	u32 seed = 1, hash = 0;
	double low = 0, high = 0;
	clear_flags();
	for (int i = 0; i < ROUNDS(24000000); i++) {
		seed = seed * 1664525u + 1013904223u;
		double value = (int)seed * (1.0 / 4096);
		float single = (float)value;
		int whole = (int)value;
		double rest = value - whole;
		low = rest < low ? rest : low;
		high = rest > high ? rest : high;
		hash += (u32)(int)(rest * 1000) ^ (u32)(long long)(single * 3.0f);
	}
	return mix_double(mix_double(hash, low), high);
}

/* Whole numbers in doubles, as scripting languages hold them: no result is ever rounded, so no flag is ever set. */
static u32 whole(void)
{
	double sum = 0, product = 1, count = 0;
	clear_flags();
	for (double i = 0; i < ROUNDS(24000000); i += 1) {
		sum += i;
		product = product * 3;
		if (product > 1e6) { product = 1; count += 1; }
		if (sum >= 1e9) sum -= 1e9;
	}
	return (u32)sum ^ (u32)(product * 16) ^ (u32)count << 8;
}

void kmain(void)
{
	print("START\n");
	run("nbody", nbody);
	run("mandel", mandel);
	run("dot", dot);
	run("convert", convert);
	run("whole", whole);
	end();
}
