/* SSE2 on whole vectors: images, packed singles, sums of differences, searches. */
#include <emmintrin.h>
#include "workload.h"

static u8 front[1 << 16] __attribute__((aligned(16)));
static u8 back[1 << 16] __attribute__((aligned(16)));

static void fill(u8 *bytes, u32 size, u32 seed)
{
	for (u32 i = 0; i < size; i++) { seed = seed * 1664525u + 1013904223u; bytes[i] = seed >> 24; }
}
static u32 sum_of(__m128i v)
{
	u32 lanes[4];
	_mm_storeu_si128((__m128i *)lanes, v);
	return lanes[0] ^ lanes[1] * 3 ^ lanes[2] * 5 ^ lanes[3] * 7;
}

/* RGBA over RGBA with the alpha of each pixel, and a saturating brightening. */
static u32 blend(void)
{
	fill(front, sizeof front, 1);
	fill(back, sizeof back, 2);
	const __m128i zero = _mm_setzero_si128(), full = _mm_set1_epi16(255), round = _mm_set1_epi16(128), glow = _mm_set1_epi8(3);
	for (int pass = 0; pass < ROUNDS(2000); pass++)
		for (u32 i = 0; i < sizeof front; i += 16) {
			__m128i f = _mm_load_si128((__m128i *)(front + i)), b = _mm_load_si128((__m128i *)(back + i)), half[2];
			for (int k = 0; k < 2; k++) {
				__m128i fw = k ? _mm_unpackhi_epi8(f, zero) : _mm_unpacklo_epi8(f, zero);
				__m128i bw = k ? _mm_unpackhi_epi8(b, zero) : _mm_unpacklo_epi8(b, zero);
				__m128i alpha = _mm_shufflehi_epi16(_mm_shufflelo_epi16(fw, 0xff), 0xff);
				__m128i sum = _mm_add_epi16(_mm_mullo_epi16(fw, alpha), _mm_mullo_epi16(bw, _mm_sub_epi16(full, alpha)));
				sum = _mm_add_epi16(sum, round);
				half[k] = _mm_srli_epi16(_mm_add_epi16(sum, _mm_srli_epi16(sum, 8)), 8);
			}
			_mm_store_si128((__m128i *)(back + i), _mm_adds_epu8(_mm_packus_epi16(half[0], half[1]), glow));
		}
	__m128i total = zero;
	for (u32 i = 0; i < sizeof back; i += 16) total = _mm_add_epi32(total, _mm_load_si128((__m128i *)(back + i)));
	return sum_of(total);
}

/* 4x4 matrices of singles, a chain of products. */
static u32 matrices(void)
{
	static float a[64][16] __attribute__((aligned(16)));
	static float b[16] __attribute__((aligned(16)));
	for (int m = 0; m < 64; m++) for (int i = 0; i < 16; i++) a[m][i] = (i % 5 == 0) + ((m * 7 + i * 3) % 11 - 5) * 0.01f;
	__m128i total = _mm_setzero_si128();
	for (int pass = 0; pass < ROUNDS(30000); pass++) {
		for (int i = 0; i < 16; i++) b[i] = (i % 5 == 0) + pass * 1e-6f;
		for (int m = 0; m < 64; m++) {
			__m128 row[4], out[4];
			for (int i = 0; i < 4; i++) row[i] = _mm_load_ps(&a[m][i * 4]);
			for (int i = 0; i < 4; i++) {
				__m128 v = _mm_load_ps(&b[i * 4]);
				out[i] = _mm_add_ps(
					_mm_add_ps(_mm_mul_ps(_mm_shuffle_ps(v, v, 0x00), row[0]), _mm_mul_ps(_mm_shuffle_ps(v, v, 0x55), row[1])),
					_mm_add_ps(_mm_mul_ps(_mm_shuffle_ps(v, v, 0xaa), row[2]), _mm_mul_ps(_mm_shuffle_ps(v, v, 0xff), row[3])));
			}
			for (int i = 0; i < 4; i++) _mm_store_ps(&b[i * 4], out[i]);
		}
		for (int i = 0; i < 4; i++) total = _mm_add_epi32(total, _mm_castps_si128(_mm_load_ps(&b[i * 4])));
	}
	return sum_of(total);
}

/* Sums of absolute differences of a block over a window, at unaligned places, and sums of products of samples. */
static u32 motion(void)
{
	fill(front, sizeof front, 3);
	fill(back, sizeof back, 4);
	u32 best = ~0u, place = 0;
	__m128i energy = _mm_setzero_si128();
	for (int pass = 0; pass < ROUNDS(40); pass++)
		for (u32 at = 0; at < sizeof front - 4096; at++) {
			__m128i sum = _mm_setzero_si128();
			for (int row = 0; row < 16; row++) {
				__m128i a = _mm_load_si128((__m128i *)(back + pass * 256 + row * 256));
				__m128i b = _mm_loadu_si128((__m128i *)(front + at + row * 256));
				sum = _mm_add_epi64(sum, _mm_sad_epu8(a, b));
			}
			energy = _mm_add_epi32(energy, _mm_madd_epi16(sum, _mm_loadu_si128((__m128i *)(front + at))));
			u32 score = _mm_cvtsi128_si32(sum) + _mm_cvtsi128_si32(_mm_srli_si128(sum, 8));
			if (score < best) { best = score; place = at; }
		}
	return sum_of(energy) ^ best ^ place << 8;
}

/* Bytes that are equal to one or greater than another, as memchr and parsers look for them. */
static u32 search(void)
{
	fill(front, sizeof front, 5);
	u32 count = 0, places = 0;
	for (int pass = 0; pass < ROUNDS(6000); pass++) {
		const __m128i wanted = _mm_set1_epi8((char)pass), limit = _mm_set1_epi8(120);
		for (u32 i = 0; i < sizeof front; i += 16) {
			__m128i v = _mm_loadu_si128((__m128i *)(front + i));
			u32 mask = _mm_movemask_epi8(_mm_or_si128(_mm_cmpeq_epi8(v, wanted), _mm_cmpgt_epi8(v, limit)));
			if (mask == 0) continue;
			count += mask;
			places = places * 31 + i + __builtin_ctz(mask);
		}
	}
	return count ^ places;
}

/* 16-bit samples to singles, scaled and clamped, and back with saturation. */
static u32 audio(void)
{
	fill(front, sizeof front, 6);
	__m128i total = _mm_setzero_si128();
	for (int pass = 0; pass < ROUNDS(2000); pass++) {
		const __m128 gain = _mm_set1_ps(0.5f + pass * 0.001f), low = _mm_set1_ps(-30000.0f), high = _mm_set1_ps(30000.0f);
		for (u32 i = 0; i < sizeof front; i += 16) {
			__m128i v = _mm_load_si128((__m128i *)(front + i)), part[2];
			for (int k = 0; k < 2; k++) {
				__m128i wide = _mm_srai_epi32(k ? _mm_unpackhi_epi16(v, v) : _mm_unpacklo_epi16(v, v), 16);
				__m128 scaled = _mm_mul_ps(_mm_cvtepi32_ps(wide), gain);
				part[k] = _mm_cvtps_epi32(_mm_max_ps(_mm_min_ps(scaled, high), low));
			}
			total = _mm_add_epi16(total, _mm_packs_epi32(part[0], part[1]));
		}
	}
	return sum_of(total);
}

void kmain(void)
{
	print("START\n");
	run("blend", blend);
	run("matrices", matrices);
	run("motion", motion);
	run("search", search);
	run("audio", audio);
	end();
}
