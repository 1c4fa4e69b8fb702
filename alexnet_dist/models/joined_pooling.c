/* ReLU, response normalization and max pooling in one pass over channels-last maps, on a CPU.

   A thread takes an image at a time, row by row, so that what it computes stays in its caches: the maps are read once,
   and the pooled maps written once. The arithmetic is that of normalization.py and of PyTorch's max pooling, in
   float32; bf16 is rounded where those layers, one after the other, would round it. Compilers make vector instructions
   of the loops over channels. */

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))
#define REACH 2    /* channels of the normalization's window, to either side */
#define WINDOW 3   /* side of the pooling's windows, which are STRIDE apart */
#define STRIDE 2
#define BATCH 8   /* groups that are normalized together */
#define NOWHERE 9  /* the position of a maximum that ReLU made 0: no pixel has it */

typedef struct {
    int64_t height, width, channels, groups; /* groups: of the normalization; 0 = there is none */
    float weight, k;
    int32_t relu_before, relu_behind, is_bf16;
} Layers;

typedef struct {
    float *rows, *wide, *squares, *terms, *scaled;
    void *memory;
} Scratch;

INLINE float widen(uint16_t value) {
    uint32_t bits = (uint32_t)value << 16;
    float wide;
    memcpy(&wide, &bits, sizeof wide);
    return wide;
}

INLINE uint16_t narrow(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    uint16_t rounded = (uint16_t)((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
    return value != value ? 0x7fc0 : rounded;
}

INLINE float load(const void *values, int64_t place, int is_bf16) {
    return is_bf16 ? widen(((const uint16_t *)values)[place]) : ((const float *)values)[place];
}

INLINE void store(void *values, int64_t place, float value, int is_bf16) {
    if (is_bf16)
        ((uint16_t *)values)[place] = narrow(value);
    else
        ((float *)values)[place] = value;
}

INLINE float round_as(float value, int is_bf16) { return is_bf16 ? widen(narrow(value)) : value; }

INLINE float relu(float value) { return value <= 0.0f ? 0.0f : value; } /* what is no number stays none */

INLINE int64_t at_most(int64_t most, int64_t value) { return value < most ? value : most; }

INLINE int64_t pooled_side(int64_t side) { return (side - WINDOW) / STRIDE + 1; }

INLINE int64_t count_values(const Layers *layers) { return layers->height * layers->width * layers->channels; }

INLINE int64_t count_pooled(const Layers *layers) {
    return pooled_side(layers->height) * pooled_side(layers->width) * layers->channels;
}

/* Maps in float32, behind the ReLU. */
INLINE void load_maps(const void *maps, int64_t place, int64_t count, int has_relu, int is_bf16, float *restrict wide) {
    for (int64_t i = 0; i < count; i++) {
        float value = load(maps, place + i, is_bf16);
        wide[i] = has_relu ? relu(value) : value;
    }
}

/* -- normalization: of the groups of some pixels, one after the other in memory -------------------------------------

   A window is loaded across what was stored a moment ago, for which a processor waits until the stores are through. So
   each loop goes over up to BATCH groups before the next one begins; squares and terms have REACH zeros between two
   groups. All stays in the first cache. */

INLINE float add_window(const float *terms) { return terms[0] + (terms[-1] + terms[1]) + (terms[-2] + terms[2]); }

INLINE void load_groups(const void *maps, int64_t place, int64_t groups, const Layers *layers, Scratch s, int is_bf16) {
    int64_t count = layers->channels / layers->groups;
    float *restrict wide = s.wide, *restrict squares = s.squares;
    load_maps(maps, place, groups * count, layers->relu_before, is_bf16, wide);
    for (int64_t n = 0; n < groups; n++)
        for (int64_t i = 0; i < count; i++) {
            float x = wide[n * count + i];
            squares[n * (count + REACH) + i] = x * x;
        }
}

INLINE void normalize(
    const void *maps, int64_t place, int64_t groups, const Layers *layers, Scratch s, int is_bf16, float *restrict made
) {
    int64_t count = layers->channels / layers->groups;
    const float *restrict wide = s.wide, *restrict squares = s.squares;
    load_groups(maps, place, groups, layers, s, is_bf16);
    for (int64_t n = 0; n < groups; n++)
        for (int64_t i = 0; i < count; i++) {
            float scale = layers->k + layers->weight * add_window(squares + n * (count + REACH) + i);
            float root = 1.0f / sqrtf(scale);
            made[n * count + i] = round_as(wide[n * count + i] * (root * sqrtf(root)), is_bf16); /* x s^-0.75 */
        }
}

/* From the gradient g of what was normalized to that of the maps: g s^-b - 2 b weight x window(g x s^(-b-1)). */
INLINE void differentiate(
    const void *maps, void *restrict grad_maps, int64_t place, int64_t groups, const Layers *layers, Scratch s,
    int is_bf16, const float *restrict g
) {
    int64_t count = layers->channels / layers->groups;
    const float *restrict wide = s.wide, *restrict squares = s.squares;
    float *restrict terms = s.terms, *restrict scaled = s.scaled, crossing = -1.5f * layers->weight;
    load_groups(maps, place, groups, layers, s, is_bf16);
    for (int64_t n = 0; n < groups; n++)
        for (int64_t i = 0; i < count; i++) {
            float scale = layers->k + layers->weight * add_window(squares + n * (count + REACH) + i);
            float root = 1.0f / sqrtf(scale), part = g[n * count + i] * (root * sqrtf(root));
            scaled[n * count + i] = part;
            terms[n * (count + REACH) + i] = part * wide[n * count + i] * (root * root);
        }
    for (int64_t n = 0; n < groups; n++)
        for (int64_t i = 0; i < count; i++) {
            float x = wide[n * count + i];
            float grad = scaled[n * count + i] + crossing * x * add_window(terms + n * (count + REACH) + i);
            store(grad_maps, place + n * count + i, layers->relu_before && x <= 0.0f ? 0.0f : grad, is_bf16);
        }
}

/* -- one image ----------------------------------------------------------------------------------------------------- */

/* The maxima of the windows in three rows. The first of equal ones wins, and the last that is no number. */
INLINE void pool_rows(
    const float *const *rows, void *restrict pooled, uint8_t *restrict positions, int64_t place, const Layers *layers,
    int is_bf16
) {
    int64_t channels = layers->channels, width = pooled_side(layers->width);
    for (int64_t x = 0; x < width; x++, place += channels) {
        const float *at = NULL;
        for (int64_t i = 0; i < channels; i++) {
            float best = -INFINITY;
            int32_t position = 0;
#pragma GCC unroll 9
            for (int d = 0; d < WINDOW * WINDOW; d++) {
                at = rows[d / WINDOW] + (STRIDE * x + d % WINDOW) * channels;
                int is_better = at[i] > best || at[i] != at[i];
                best = is_better ? at[i] : best;
                position = is_better ? d : position;
            }
            if (layers->relu_behind) {
                position = best <= 0.0f ? NOWHERE : position;
                best = relu(best);
            }
            store(pooled, place + i, best, is_bf16);
            positions[place + i] = (uint8_t)position;
        }
    }
}

INLINE void forward_image(
    const void *maps, void *pooled, uint8_t *positions, int64_t image, const Layers *layers, Scratch s, int is_bf16
) {
    int64_t first = image * count_values(layers), first_pooled = image * count_pooled(layers);
    int64_t row = layers->width * layers->channels, step = pooled_side(layers->width) * layers->channels, ready = 0;
    for (int64_t y = 0; y < pooled_side(layers->height); y++) {
        for (; ready < STRIDE * y + WINDOW; ready++) { /* each row is normalized once */
            float *made = s.rows + ready % WINDOW * row;
            if (!layers->groups)
                load_maps(maps, first + ready * row, row, 0, is_bf16, made);
            for (int64_t n = 0, all = layers->width * layers->groups; n < all; n += BATCH) {
                int64_t begin = n * (layers->channels / layers->groups), groups = at_most(BATCH, all - n);
                normalize(maps, first + ready * row + begin, groups, layers, s, is_bf16, made + begin);
            }
        }
        const float *rows[WINDOW];
        for (int down = 0; down < WINDOW; down++) rows[down] = s.rows + (STRIDE * y + down) % WINDOW * row;
        pool_rows(rows, pooled, positions, first_pooled + y * step, layers, is_bf16);
    }
}

/* The gradient of row y of what was pooled: a pixel asks its windows, the upper and the left one first, for their
   maxima's positions. As in PyTorch, a sum has the type of the maps. */
INLINE void unpool_row(
    const void *grad, const uint8_t *positions, int64_t first, int64_t y, const Layers *layers, int is_bf16,
    float *restrict made
) {
    int64_t channels = layers->channels, width = pooled_side(layers->width), last = pooled_side(layers->height) - 1;
    memset(made, 0, layers->width * channels * sizeof *made);
    for (int64_t above = y < WINDOW ? 0 : (y - 1) / STRIDE; above <= at_most(last, y / STRIDE); above++)
        for (int64_t x = 0; x < width; x++) {
            int64_t place = first + (above * width + x) * channels;
            for (int right = 0; right < WINDOW; right++) {
                float *restrict to = made + (STRIDE * x + right) * channels;
                uint8_t wanted = (uint8_t)((y - STRIDE * above) * WINDOW + right);
                for (int64_t i = 0; i < channels; i++) {
                    float part = positions[place + i] == wanted ? load(grad, place + i, is_bf16) : 0.0f;
                    to[i] = round_as(to[i] + part, is_bf16);
                }
            }
        }
}

INLINE void backward_image(
    const void *maps, void *grad_maps, const void *grad, const uint8_t *positions, int64_t image, const Layers *layers,
    Scratch s, int is_bf16
) {
    int64_t first = image * count_values(layers), first_pooled = image * count_pooled(layers);
    int64_t row = layers->width * layers->channels;
    for (int64_t y = 0; y < layers->height; y++) {
        float *made = s.rows;
        unpool_row(grad, positions, first_pooled, y, layers, is_bf16, made);
        for (int64_t n = 0, all = layers->width * layers->groups; n < all; n += BATCH) {
            int64_t begin = n * (layers->channels / layers->groups), groups = at_most(BATCH, all - n);
            differentiate(maps, grad_maps, first + y * row + begin, groups, layers, s, is_bf16, made + begin);
        }
        for (int64_t i = 0; !layers->groups && i < row; i++) store(grad_maps, first + y * row + i, made[i], is_bf16);
    }
}

/* -- what Python calls: the images from `begin` to `end`; 0, or 1 where there is no memory for the scratch --------- */

static int allocate(const Layers *layers, Scratch *s) {
    int64_t row = layers->width * layers->channels, batch = BATCH * (layers->channels + REACH) + REACH;
    float *memory = s->memory = calloc(WINDOW * row + 4 * batch, sizeof *memory);
    s->rows = memory, s->wide = memory + WINDOW * row, s->scaled = s->wide + batch;
    s->squares = s->scaled + batch + REACH, s->terms = s->squares + batch;
    return memory == NULL;
}

int join_forward(
    const void *maps, void *pooled, uint8_t *positions, const Layers *layers, int64_t begin, int64_t end
) {
    Scratch s;
    if (allocate(layers, &s)) return 1;
    for (int64_t n = begin; n < end; n++)
        if (layers->is_bf16)
            forward_image(maps, pooled, positions, n, layers, s, 1);
        else
            forward_image(maps, pooled, positions, n, layers, s, 0);
    free(s.memory);
    return 0;
}

int join_backward(
    const void *maps, void *grad_maps, const void *grad, const uint8_t *positions, const Layers *layers, int64_t begin,
    int64_t end
) {
    Scratch s;
    if (allocate(layers, &s)) return 1;
    for (int64_t n = begin; n < end; n++)
        if (layers->is_bf16)
            backward_image(maps, grad_maps, grad, positions, n, layers, s, 1);
        else
            backward_image(maps, grad_maps, grad, positions, n, layers, s, 0);
    free(s.memory);
    return 0;
}
