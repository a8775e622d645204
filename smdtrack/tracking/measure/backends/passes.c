/* One pass over memory before a step and one after it. A pass copies, multiplies and sums in float64 in one go.

   The loops are written with the vector types that GCC and Clang share, two vectors of four lanes at a time, because
   the code that they make of plain loops is sometimes twice as slow. The sums have a fixed order, so that no compiler
   flag is needed that changes how a process rounds. */

#include <stddef.h>
#include <stdint.h>

#ifdef SMDTRACK_CLONES /* a copy for each instruction set, chosen when the library is loaded */
#define CLONED __attribute__((target_clones("arch=x86-64-v3", "default")))
#else
#define CLONED
#endif

#define LANES 4

typedef float floats __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef double doubles __attribute__((vector_size(8 * LANES)));

#define AT(array, i) (*(floats *)((array) + (i)))
#define WIDE(array, i) __builtin_convertvector(*(const floats *)((array) + (i)), doubles)

/* Adds the lanes of the two partial sums, and the elements that did not fill a vector. */
#define TOTAL(s) (s[0][0] + s[0][1] + s[0][2] + s[0][3] + s[1][0] + s[1][1] + s[1][2] + s[1][3] + s##_rest)

/* Copies w; returns <w, w>, <w, g>, <g, g>. */
CLONED static void read_with(const float *w, const float *g, float *before, int64_t n, double *sums) {
    doubles ww[2] = {{0}}, wg[2] = {{0}}, gg[2] = {{0}};
    double ww_rest = 0, wg_rest = 0, gg_rest = 0;
    int64_t i = 0;
    for (; i + 2 * LANES <= n; i += 2 * LANES)
        for (int k = 0; k < 2; k++) {
            int64_t at = i + k * LANES;
            doubles x = WIDE(w, at), y = WIDE(g, at);
            AT(before, at) = AT(w, at);
            ww[k] += x * x;
            wg[k] += x * y;
            gg[k] += y * y;
        }
    for (; i < n; i++) {
        double x = w[i], y = g[i];
        before[i] = w[i];
        ww_rest += x * x;
        wg_rest += x * y;
        gg_rest += y * y;
    }
    sums[0] = TOTAL(ww);
    sums[1] = TOTAL(wg);
    sums[2] = TOTAL(gg);
}

/* Copies w; returns <w, w>. */
CLONED static void read_alone(const float *w, float *before, int64_t n, double *sums) {
    doubles ww[2] = {{0}};
    double ww_rest = 0;
    int64_t i = 0;
    for (; i + 2 * LANES <= n; i += 2 * LANES)
        for (int k = 0; k < 2; k++) {
            int64_t at = i + k * LANES;
            doubles x = WIDE(w, at);
            AT(before, at) = AT(w, at);
            ww[k] += x * x;
        }
    for (; i < n; i++) {
        before[i] = w[i];
        ww_rest += (double)w[i] * w[i];
    }
    sums[0] = TOTAL(ww);
}

/* Of the change d = now - w: returns <w, d>, <d, d>, <d, v>. */
CLONED static void compare_with(const float *now, const float *w, const float *v, int64_t n, double *sums) {
    doubles wd[2] = {{0}}, dd[2] = {{0}}, dv[2] = {{0}};
    double wd_rest = 0, dd_rest = 0, dv_rest = 0;
    int64_t i = 0;
    for (; i + 2 * LANES <= n; i += 2 * LANES)
        for (int k = 0; k < 2; k++) {
            int64_t at = i + k * LANES;
            doubles x = WIDE(w, at), d = WIDE(now, at) - x;
            wd[k] += x * d;
            dd[k] += d * d;
            dv[k] += d * WIDE(v, at);
        }
    for (; i < n; i++) {
        double x = w[i], d = now[i] - x;
        wd_rest += x * d;
        dd_rest += d * d;
        dv_rest += d * v[i];
    }
    sums[0] = TOTAL(wd);
    sums[1] = TOTAL(dd);
    sums[2] = TOTAL(dv);
}

/* Of the change d = now - w: returns <w, d>, <d, d>. */
CLONED static void compare(const float *now, const float *w, int64_t n, double *sums) {
    doubles wd[2] = {{0}}, dd[2] = {{0}};
    double wd_rest = 0, dd_rest = 0;
    int64_t i = 0;
    for (; i + 2 * LANES <= n; i += 2 * LANES)
        for (int k = 0; k < 2; k++) {
            int64_t at = i + k * LANES;
            doubles x = WIDE(w, at), d = WIDE(now, at) - x;
            wd[k] += x * d;
            dd[k] += d * d;
        }
    for (; i < n; i++) {
        double x = w[i], d = now[i] - x;
        wd_rest += x * d;
        dd_rest += d * d;
    }
    sums[0] = TOTAL(wd);
    sums[1] = TOTAL(dd);
}

/* Pieces of tensors. A gradient or a vector may be missing; its sums, in (pieces, 3), are then not written. Several
   threads may work on one job: `taken` counts the pieces that were taken. */
struct job {
    int64_t pieces;
    const int64_t *elements;
    const float *const *weights;
    const float *const *vectors;
    float *const *before;
    double *sums;
    int64_t taken;
};

#define EACH(i, job) for (int64_t i; (i = __atomic_fetch_add(&(job)->taken, 1, __ATOMIC_RELAXED)) < (job)->pieces;)

void smdtrack_begin(struct job *job) {
    EACH(i, job)
        if (job->vectors[i])
            read_with(job->weights[i], job->vectors[i], job->before[i], job->elements[i], job->sums + 3 * i);
        else
            read_alone(job->weights[i], job->before[i], job->elements[i], job->sums + 3 * i);
}

void smdtrack_end(struct job *job) {
    EACH(i, job)
        if (job->vectors[i])
            compare_with(job->weights[i], job->before[i], job->vectors[i], job->elements[i], job->sums + 3 * i);
        else
            compare(job->weights[i], job->before[i], job->elements[i], job->sums + 3 * i);
}
