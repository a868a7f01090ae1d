/* The fast path of the runtime: students that are networks of layers, such that read neighbours or
 * the bands of a graph transform, and the lookup of known nodes.
 *
 * Types made from arrays and asked with one call each:
 *
 *   Network(layers[, beside, mean, deviation]).answer(x[, position])
 *   Streams(known, table, ...).answer(x), (x, neighbors) or (x, parts, known)
 *   Bands(sizes, chains, ...).answer(x) or (x, bands)
 *   Known(logits, ids, order, rows).answer(nodes)
 *
 * x is (indptr, indices[, values]) or a dense float32 array [B, F]; position float32 [B, beside];
 * neighbors a list of lists of ids; bands float32 [B, w]. A layer is (weight float32 [in, out], bias
 * float32 [out]), or has all the parts that `block_from` reads, those of experts among them.
 *
 * Each returns new logits, float32 [B, C]; softmax(logits, temperature) makes them probabilities in
 * place. What none of them takes (another form of request, an unknown node, a column that does not
 * exist, a number that is not finite) is answered with None: the caller then goes the general way,
 * which says in words what is wrong. So requests have no error messages here.
 *
 * The file needs the stable ABI of CPython 3.11 and a compiler with GCC's vector extensions.
 * Entries of a request are read once, and checked where they are read: other threads may write to
 * the arrays meanwhile, as the interpreter's lock is let go of for large requests.
 */
#define Py_LIMITED_API 0x030B0000
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))

/* One build answers on every processor of its kind: the widest version that it has is chosen when
 * the module is loaded. */
#if defined(__x86_64__) && defined(__GLIBC__)
#define FOR_EACH_CPU __attribute__((target_clones("avx512f", "fma", "default")))
#else
#define FOR_EACH_CPU
#endif

#define LANE 16        /* floats that the compiler handles together */
#define TILE_ROWS 4    /* rows and lanes of a product that stay in registers */
#define TILE_LANES 2
#define PANEL (LANE * TILE_LANES)
#define SPARSE_LANES 4 /* lanes of a sparse row's sum that stay in registers */
#define BLOCK_ROWS 32  /* rows that go through all layers together: their values stay in cache */
#define EXPERT_ROWS 256 /* the same where layers have experts: each reads its weights for its rows */
#define MOST_EXPERTS 64 /* of a layer */
#define MOST_BANDS 64   /* that a student reads, and powers of each */
#define LET_GO_ABOVE 500000 /* multiplications from which other threads may run meanwhile */

typedef Py_ssize_t size;
typedef float lane __attribute__((vector_size(64), aligned(4)));
typedef int32_t bits __attribute__((vector_size(64), aligned(4)));

static PyObject *np_empty, *np_float32, *known_type;

/* --- layers ---------------------------------------------------------------------------------- */

/* A map h @ weight + bias, columns filled up with zeros to whole lanes. What reads features keeps
 * its weights row by row, for sparse rows; the others are cut into panels of PANEL columns, each of
 * which is read from end to end. */
typedef struct {
    size in, out, padded;
    int by_row;
    float *weight, *bias;
} Map;

/* What comes behind a map: a factor and a summand per column, layer norm, a ReLU. */
typedef struct {
    float *scale, *shift, *norm_weight, *norm_bias; /* NULL where there is none */
    float epsilon;
    int relu, norm_last; /* whether there is a ReLU, and whether the norm comes behind it */
} Finish;

/* One layer: a map; or experts, of which each row uses `top_k`, weighted with their gates. These
 * are a softmax over the cosines of the chosen ones' memories, or, where there is a `project`, one
 * over the logits of all. */
typedef struct {
    size num_maps, top_k; /* top_k is 0 for a map */
    Map *maps;
    Map chooser, project;
    Finish finish;
} Block;

typedef struct {
    size num_blocks;
    Block *blocks;
} Chain;

INLINE size answers_of(const Chain *chain)
{
    return chain->blocks[chain->num_blocks - 1].maps[0].out;
}

/* How features are read: what is taken off and divided by, and whether a row is then divided by the
 * sum of its absolute values. Behind them stand `beside` dense values. */
typedef struct {
    size features, beside;
    float *mean, *deviation;
    int centred, unit_sum, each_once; /* each_once: no column of a row may come twice */
} Reader;

/* A row of features: dense, `beside` behind them; or its entries. */
typedef struct {
    size count;
    const int32_t *columns;
    const float *values, *beside;
} Entries;

/* Rows as a layer reads them: pointers to dense ones, or, for features, entries. */
typedef struct {
    size num_rows, features, beside;
    const float *const *dense;
    const Entries *sparse; /* NULL for dense rows */
} Rows;

/* Sizes of the memory that a call works in, and the memory. */
typedef struct {
    size rows, widest, experts, top_k, project, input, own, entries;
} Needs;

typedef struct {
    float *memory;
    float *turns[2], *input, *products, *project, *gates, *lengths, *values, *picked_gates, *own;
    const float **dense, **picked_h, **project_rows, **turn_rows[2];
    float **to_project, **to_products, **to_turn[2], **picked_y;
    Entries *sparse;
    int32_t *columns, *chosen;
} Work;

static size round_up(size n, size to) { return (n + to - 1) / to * to; }
static size most(size a, size b) { return a > b ? a : b; }

static float *zeros(size count)
{
    void *memory = NULL;
    if (count > (size)(PTRDIFF_MAX / sizeof(float)) - 64 ||
        posix_memalign(&memory, 64, (count ? count : 1) * sizeof(float)))
        return NULL;
    memset(memory, 0, count * sizeof(float));
    return memory;
}

/* Zero where a number is below it; what is no number stays so, and is refused at the end. */
#define rectified(value) ((lane)((bits)(value) & ~((value) < 0)))

/* `rows` rows of `lanes` lanes: y = h @ w + bias, or y += gate * (h @ w + bias) where there are
 * gates. All sizes but `in` are constants once inlined. */
INLINE void tile(int rows, int lanes, const float *const *h, const float *w, size w_step,
                 const float *bias, size in, float *const *y, size c, int relu, const float *gates)
{
    lane sum[TILE_ROWS][TILE_LANES];
    const float *from[TILE_ROWS];
#pragma GCC unroll 4
    for (int r = 0; r < rows; r++) {
        from[r] = h[r];
#pragma GCC unroll 4
        for (int l = 0; l < lanes; l++)
            sum[r][l] = *(const lane *)(bias + c + l * LANE);
    }
    for (size k = 0; k < in; k++, w += w_step) {
#pragma GCC unroll 4
        for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
            for (int l = 0; l < lanes; l++)
                sum[r][l] += from[r][k] * *(const lane *)(w + l * LANE);
    }
#pragma GCC unroll 4
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
        for (int l = 0; l < lanes; l++) {
            lane *to = (lane *)(y[r] + c + l * LANE);
            if (gates)
                sum[r][l] = *to + gates[r] * sum[r][l];
            if (relu)
                sum[r][l] = rectified(sum[r][l]);
            *to = sum[r][l];
        }
}

INLINE void some_rows(int lanes, size rows, const float *const *h, const float *w, size w_step,
                      const float *bias, size in, float *const *y, size c, int relu,
                      const float *gates)
{
    size r = 0;
    for (; r + TILE_ROWS <= rows; r += TILE_ROWS)
        tile(TILE_ROWS, lanes, h + r, w, w_step, bias, in, y + r, c, relu,
             gates ? gates + r : NULL);
    for (; r < rows; r++)
        tile(1, lanes, h + r, w, w_step, bias, in, y + r, c, relu, gates ? gates + r : NULL);
}

/* y [rows, padded] = h [rows, in] through a map; see `tile`. */
FOR_EACH_CPU
static void dense_map(const Map *map, size rows, const float *const *h, float *const *y, int relu,
                      const float *gates)
{
    for (size c = 0; c < map->padded; c += PANEL) {
        const int is_wide = map->padded - c >= PANEL;
        if (map->by_row && is_wide)
            some_rows(TILE_LANES, rows, h, map->weight + c, map->padded, map->bias, map->in, y, c,
                      relu, gates);
        else if (map->by_row)
            some_rows(1, rows, h, map->weight + c, map->padded, map->bias, map->in, y, c, relu,
                      gates);
        else if (is_wide)
            some_rows(TILE_LANES, rows, h, map->weight + c * map->in, PANEL, map->bias, map->in, y,
                      c, relu, gates);
        else
            some_rows(1, rows, h, map->weight + c * map->in, LANE, map->bias, map->in, y, c, relu,
                      gates);
    }
}

/* The same for one sparse row, `lanes` lanes from column `c` on. */
INLINE void sparse_lanes(int lanes, const Map *map, const Entries *row, size features, size beside,
                         size c, float *y, int relu, const float *gate)
{
    lane sum[SPARSE_LANES];
    const float *w;
#pragma GCC unroll 4
    for (int l = 0; l < lanes; l++)
        sum[l] = *(const lane *)(map->bias + c + l * LANE);
    for (size e = 0; e < row->count; e++) {
        w = map->weight + (size)row->columns[e] * map->padded + c;
#pragma GCC unroll 4
        for (int l = 0; l < lanes; l++)
            sum[l] += row->values[e] * *(const lane *)(w + l * LANE);
    }
    w = map->weight + features * map->padded + c;
    for (size k = 0; row->beside && k < beside; k++, w += map->padded)
#pragma GCC unroll 4
        for (int l = 0; l < lanes; l++)
            sum[l] += row->beside[k] * *(const lane *)(w + l * LANE);
#pragma GCC unroll 4
    for (int l = 0; l < lanes; l++) {
        lane *to = (lane *)(y + c + l * LANE);
        if (gate)
            sum[l] = *to + *gate * sum[l];
        if (relu)
            sum[l] = rectified(sum[l]);
        *to = sum[l];
    }
}

FOR_EACH_CPU
static void sparse_map(const Map *map, const Entries *row, size features, size beside, float *y,
                       int relu, const float *gate)
{
    size c = 0;
    for (; c + SPARSE_LANES * LANE <= map->padded; c += SPARSE_LANES * LANE)
        sparse_lanes(SPARSE_LANES, map, row, features, beside, c, y, relu, gate);
    for (; c < map->padded; c += LANE)
        sparse_lanes(1, map, row, features, beside, c, y, relu, gate);
}

/* Rows of either kind through a map. */
INLINE void any_map(const Map *map, const Rows *h, float *const *y, int relu)
{
    if (!h->sparse)
        dense_map(map, h->num_rows, h->dense, y, relu, NULL);
    for (size r = 0; h->sparse && r < h->num_rows; r++)
        sparse_map(map, h->sparse + r, h->features, h->beside, y[r], relu, NULL);
}

/* The sum of a lane, in halves: 4 steps, where one value after the other would take 16. */
INLINE float total(const lane *of)
{
    lane sums = *of;
#pragma GCC unroll 4
    for (int half = LANE / 2; half; half /= 2)
#pragma GCC unroll 8
        for (int l = 0; l < half; l++)
            sums[l] += sums[l + half];
    return sums[0];
}

INLINE float sum_of_squares(const float *values, size count)
{
    lane sums = {0};
    size i = 0;
    for (; i + LANE <= count; i += LANE)
        sums += *(const lane *)(values + i) * *(const lane *)(values + i);
    float sum = total(&sums);
    for (; i < count; i++)
        sum += values[i] * values[i];
    return sum;
}

INLINE float dot(const float *a, const float *b, size count) /* of whole lanes */
{
    lane sums = {0};
    for (size i = 0; i < count; i += LANE)
        sums += *(const lane *)(a + i) * *(const lane *)(b + i);
    return total(&sums);
}

INLINE int are_finite(const float *values, size count)
{
    lane left = {0}; /* and no number where a value is not finite */
    size i = 0;
    for (; i + LANE <= count; i += LANE)
        left += *(const lane *)(values + i) - *(const lane *)(values + i);
    float zero = total(&left);
    for (; i < count; i++)
        zero += values[i] - values[i];
    return zero == 0;
}

INLINE void norm_row(const Finish *finish, size width, float *y)
{
    float mean = 0, square = 0;
    for (size c = 0; c < width; c++)
        mean += y[c];
    mean /= width;
    for (size c = 0; c < width; c++)
        square += (y[c] - mean) * (y[c] - mean);
    const float scale = 1 / sqrtf(square / width + finish->epsilon);
    for (size c = 0; c < width; c++)
        y[c] = (y[c] - mean) * scale * finish->norm_weight[c] + finish->norm_bias[c];
}

INLINE void finish_row(const Finish *finish, size width, float *y)
{
    for (size c = 0; finish->scale && c < width; c++)
        y[c] = y[c] * finish->scale[c] + finish->shift[c];
    if (finish->norm_weight && !finish->norm_last)
        norm_row(finish, width, y);
    for (size c = 0; finish->relu && c < width; c++)
        y[c] = y[c] < 0 ? 0 : y[c];
    if (finish->norm_weight && finish->norm_last)
        norm_row(finish, width, y);
}

#define SMALLEST_NORM 1e-12f /* as students/experts.py has it */

/* The experts that each row goes to, ascending in rank, and their gates. Of equal ones the first
 * comes first, also of what is no number: what is chosen exists in any case. */
INLINE void choose(const Block *block, const Rows *h, const Work *work)
{
    const size rows = h->num_rows, num = block->num_maps, top_k = block->top_k;
    const size step = block->chooser.padded, project = block->project.padded;
    const int gated = block->project.weight != NULL;
    for (size r = 0; r < rows; r++)
        work->to_products[r] = work->products + r * step;
    if (gated) {
        for (size r = 0; r < rows; r++)
            work->project_rows[r] = work->to_project[r] = work->project + r * project;
        any_map(&block->project, h, work->to_project, 0);
        for (size r = 0; r < rows; r++)
            work->lengths[r] = sum_of_squares(work->project_rows[r], block->project.out);
        dense_map(&block->chooser, rows, work->project_rows, work->to_products, 0, NULL);
    } else {
        any_map(&block->chooser, h, work->to_products, 0);
        for (size r = 0; r < rows; r++) {
            const Entries *row = h->sparse ? h->sparse + r : NULL;
            work->lengths[r] = row ? sum_of_squares(row->values, row->count)
                                   : sum_of_squares(h->dense[r], block->chooser.in);
            if (row && row->beside)
                work->lengths[r] += sum_of_squares(row->beside, h->beside);
        }
    }
    for (size r = 0; r < rows; r++) {
        float *score = work->to_products[r], *gates = work->gates + r * top_k;
        int32_t *chosen = work->chosen + r * top_k;
        const float length = sqrtf(work->lengths[r]);
        const float divisor = length > SMALLEST_NORM || length != length ? length : SMALLEST_NORM;
        for (size e = 0; e < num; e++)
            score[e] /= divisor;
        uint64_t taken = 0;
        for (size k = 0; k < top_k; k++) {
            size best = 0;
            while (taken >> best & 1)
                best++;
            for (size e = best + 1; e < num; e++)
                if (!(taken >> e & 1) && score[e] > score[best])
                    best = e;
            taken |= (uint64_t)1 << best;
            chosen[k] = (int32_t)best;
        }
        const float highest = score[chosen[0]];
        float sum = 0;
        for (size k = 0; k < top_k; k++)
            sum += gates[k] = expf(score[chosen[k]] - highest);
        if (gated)
            for (size e = 0; e < num; e++)
                sum += taken >> e & 1 ? 0 : expf(score[e] - highest);
        for (size k = 0; k < top_k; k++)
            gates[k] /= sum;
    }
}

/* y [rows, padded] = rows through a layer and what comes behind it. */
FOR_EACH_CPU
static void apply(const Block *block, const Rows *h, float *const *y, const Work *work)
{
    const size rows = h->num_rows, top_k = block->top_k, out = block->maps[0].out;
    const Finish *finish = &block->finish;
    const int is_plain = !top_k && !finish->scale && !finish->norm_weight;
    if (!top_k) {
        any_map(block->maps, h, y, is_plain && finish->relu);
    } else {
        choose(block, h, work);
        for (size r = 0; r < rows; r++)
            memset(y[r], 0, block->maps[0].padded * sizeof(float));
        /* one expert after the other, so that its weights stay in a core's cache */
        for (int32_t e = 0; h->sparse && e < block->num_maps; e++)
            for (size k = 0; k < rows * top_k; k++)
                if (work->chosen[k] == e)
                    sparse_map(block->maps + e, h->sparse + k / top_k, h->features, h->beside,
                               y[k / top_k], 0, work->gates + k);
        for (size e = 0; !h->sparse && e < block->num_maps; e++) {
            size picked = 0;
            for (size k = 0; k < rows * top_k; k++)
                if (work->chosen[k] == e) {
                    work->picked_h[picked] = h->dense[k / top_k];
                    work->picked_y[picked] = y[k / top_k];
                    work->picked_gates[picked++] = work->gates[k];
                }
            dense_map(block->maps + e, picked, work->picked_h, work->picked_y, 0,
                      work->picked_gates);
        }
    }
    for (size r = 0; !is_plain && r < rows; r++)
        finish_row(finish, out, y[r]);
}

/* `y` = rows through all layers of a chain; the results between lie in the memory's two turns. */
static void follow(const Chain *chain, Rows h, float *const *y, const Work *work, size widest)
{
    for (size i = 0; i < chain->num_blocks; i++) {
        const size last = chain->num_blocks - 1;
        for (size r = 0; i < last && r < h.num_rows; r++)
            work->turn_rows[i % 2][r] = work->to_turn[i % 2][r] = work->turns[i % 2] + r * widest;
        apply(chain->blocks + i, &h, i < last ? work->to_turn[i % 2] : y, work);
        h.dense = work->turn_rows[i % 2];
        h.sparse = NULL;
    }
}

/* --- requests -------------------------------------------------------------------------------- */

/* Rows of a request: dense, or the entries of sparse ones. `wide` says that integers have 8 bytes,
 * `doubled` that values have. */
typedef struct {
    size rows, entries;
    const float *dense, *beside;
    const void *indptr, *indices, *values;
    int wide_indptr, wide_indices, doubled;
} Request;

INLINE int64_t integer(const void *array, int wide, size i)
{
    return wide ? ((const int64_t *)array)[i] : ((const int32_t *)array)[i];
}

/* Entries of a row as kernels read them; 0 if one is not right. Those of the request are read here
 * and nowhere else. */
INLINE int copy_entries(const Reader *reader, const Request *x, int wide, size first, size count,
                        int32_t *columns, float *values)
{
    int wrong = 0; /* looked at once behind the loops, which can then take several entries at a time */
    for (size e = 0; e < count; e++) {
        const int64_t column = integer(x->indices, wide, first + e);
        wrong |= (uint64_t)column >= (uint64_t)reader->features;
        columns[e] = (int32_t)column;
    }
    for (size e = 1; reader->each_once && e < count; e++)
        wrong |= columns[e] <= columns[e - 1];
    for (size e = 0; e < count; e++)
        values[e] = !x->values    ? 1
                    : x->doubled ? (float)((const double *)x->values)[first + e]
                                 : ((const float *)x->values)[first + e];
    for (size e = 0; e < count; e++)
        wrong |= !(values[e] - values[e] == 0);
    return !wrong;
}

INLINE void scale_entries(const Reader *reader, size count, const int32_t *columns, float *values)
{
    for (size e = 0; reader->deviation && e < count; e++)
        values[e] /= reader->deviation[columns ? columns[e] : e];
    float sum = 0;
    for (size e = 0; reader->unit_sum && e < count; e++)
        sum += fabsf(values[e]);
    for (size e = 0; reader->unit_sum && e < count; e++)
        values[e] /= sum > SMALLEST_NORM ? sum : SMALLEST_NORM;
}

/* Rows `start` and on of a request, as many as `h` says, as layers read them. `end` is the number
 * of entries before them, and then behind them. Returns 0 where they are not right. */
FOR_EACH_CPU
static int take_rows(const Reader *reader, const Request *x, size start, int64_t *end,
                     const Work *work, size capacity, Rows *h)
{
    const size rows = h->num_rows, features = reader->features, beside = reader->beside;
    h->features = features;
    h->beside = beside;
    h->dense = work->dense;
    h->sparse = x->dense ? NULL : work->sparse;
    if (x->beside && !are_finite(x->beside + start * beside, rows * beside))
        return 0;
    if (!x->dense) {
        size used = 0;
        for (size r = 0; r < rows; r++) {
            const int64_t begin = *end;
            *end = integer(x->indptr, x->wide_indptr, start + r + 1);
            if (*end < begin || *end > x->entries || *end - begin > capacity - used)
                return 0;
            const size count = (size)(*end - begin);
            int32_t *columns = work->columns + used;
            float *values = work->values + used;
            const int fits = x->wide_indices
                                 ? copy_entries(reader, x, 1, begin, count, columns, values)
                                 : copy_entries(reader, x, 0, begin, count, columns, values);
            if (!fits)
                return 0;
            if (reader->deviation || reader->unit_sum)
                scale_entries(reader, count, columns, values);
            work->sparse[r] = (Entries){
                count, columns, values, x->beside ? x->beside + (start + r) * beside : NULL};
            used += count;
        }
        return 1;
    }
    const float *from = x->dense + start * features;
    const int as_given = !beside && !reader->deviation && !reader->unit_sum;
    for (size r = 0; r < rows; r++, from += features) {
        if (!are_finite(from, features))
            return 0;
        work->dense[r] = from;
        if (as_given)
            continue;
        float *row = work->input + r * (features + beside);
        memcpy(row, from, features * sizeof(float));
        for (size i = 0; reader->centred && i < features; i++)
            row[i] -= reader->mean[i];
        scale_entries(reader, features, NULL, row);
        for (size i = 0; i < beside; i++)
            row[features + i] = x->beside ? x->beside[(start + r) * beside + i] : 0;
        work->dense[r] = row;
    }
    return 1;
}

/* How many entries so many rows of a request have together, at most; 0 for a dense one. */
static size entries_together(const Request *x, size block)
{
    int64_t longest = 0;
    for (size start = 0; !x->dense && start < x->rows; start += block) {
        const size stop = start + block < x->rows ? start + block : x->rows;
        const int64_t count = integer(x->indptr, x->wide_indptr, stop) -
                              integer(x->indptr, x->wide_indptr, start);
        longest = count > longest ? count : longest;
    }
    return longest > x->entries ? x->entries : (size)longest;
}

/* Writes answers that are finite, and returns whether all are. */
INLINE int hand_over(const float *from, size num_classes, float *to)
{
    for (size c = 0; c < num_classes; c++) {
        to[c] = from[c];
        if (!(to[c] - to[c] == 0))
            return 0;
    }
    return 1;
}

static void *cut(char **next, size bytes)
{
    void *memory = *next;
    *next += round_up(bytes, 64);
    return memory;
}

/* Memory for `rows` rows at a time; 0 if there is none. */
static int work_new(Work *work, const Needs *needs)
{
    const size n = needs->rows, values = n * sizeof(float), pointers = n * sizeof(void *);
    const size bytes = values * (2 * needs->widest + needs->input + needs->experts +
                                 needs->project + 2 * needs->top_k + needs->own + 2) +
                       n * needs->top_k * sizeof(float) + 2 * needs->entries * sizeof(float) +
                       12 * pointers + n * sizeof(Entries) + 32 * 64;
    void *memory = NULL;
    if (posix_memalign(&memory, 64, bytes))
        return 0;
    char *next = memory;
    work->memory = memory;
    for (int i = 0; i < 2; i++) {
        work->turns[i] = cut(&next, values * needs->widest);
        work->turn_rows[i] = cut(&next, pointers);
        work->to_turn[i] = cut(&next, pointers);
    }
    work->input = cut(&next, values * needs->input);
    work->products = cut(&next, values * needs->experts);
    work->project = cut(&next, values * needs->project);
    work->gates = cut(&next, values * needs->top_k);
    work->chosen = cut(&next, values * needs->top_k);
    work->picked_gates = cut(&next, values * needs->top_k);
    work->own = cut(&next, values * needs->own);
    work->lengths = cut(&next, values);
    work->values = cut(&next, needs->entries * sizeof(float));
    work->columns = cut(&next, needs->entries * sizeof(float));
    work->dense = cut(&next, pointers);
    work->picked_h = cut(&next, pointers);
    work->picked_y = cut(&next, pointers);
    work->project_rows = cut(&next, pointers);
    work->to_project = cut(&next, pointers);
    work->to_products = cut(&next, pointers);
    work->sparse = cut(&next, n * sizeof(Entries));
    return 1;
}

/* --- networks -------------------------------------------------------------------------------- */

typedef struct {
    PyObject_HEAD
    Chain chain;
    Reader reader;
    Needs needs;
} Network;

/* Logits [rows, C] of a request. Returns 0 where it is not right, or an answer is not finite. */
static int network_forward(const Network *network, const Request *x, const Work *work,
                           const Needs *needs, float *logits)
{
    const Chain *chain = &network->chain;
    const size num_classes = answers_of(chain);
    int64_t end = 0;
    if (!x->dense && integer(x->indptr, x->wide_indptr, 0) != 0)
        return 0;
    for (size start = 0; start < x->rows; start += needs->rows) {
        Rows h = {.num_rows = x->rows - start < needs->rows ? x->rows - start : needs->rows};
        if (!take_rows(&network->reader, x, start, &end, work, needs->entries, &h))
            return 0;
        /* the last layer reads one turn and writes the other */
        float **to = work->to_turn[(chain->num_blocks - 1) % 2];
        for (size r = 0; r < h.num_rows; r++)
            to[r] = work->turns[(chain->num_blocks - 1) % 2] + r * needs->widest;
        follow(chain, h, to, work, needs->widest);
        for (size r = 0; r < h.num_rows; r++)
            if (!hand_over(to[r], num_classes, logits + (start + r) * num_classes))
                return 0;
    }
    return x->dense || end == x->entries;
}

/* --- from Python and back -------------------------------------------------------------------- */

/* A contiguous array of a number of dimensions. Returns its format's letter, 0 for anything else,
 * which leaves nothing to release and no error behind. */
static char take(PyObject *object, Py_buffer *view, int dimensions)
{
    if (PyObject_GetBuffer(object, view, PyBUF_C_CONTIGUOUS | PyBUF_FORMAT) < 0) {
        PyErr_Clear();
        return 0;
    }
    const char *format = view->format;
    if (view->ndim == dimensions && format && format[0] && !format[1])
        return format[0];
    PyBuffer_Release(view);
    return 0;
}

static int take_integers(PyObject *object, Py_buffer *view)
{
    const char format = take(object, view, 1);
    if (!format)
        return 0;
    if ((format == 'l' || format == 'q' || format == 'i') &&
        (view->itemsize == 8 || view->itemsize == 4))
        return 1;
    PyBuffer_Release(view);
    return 0;
}

static PyObject *new_answer(size rows, size num_classes, Py_buffer *view)
{
    PyObject *answer = PyObject_CallFunction(np_empty, "(nn)O", rows, num_classes, np_float32);
    if (answer && PyObject_GetBuffer(answer, view, PyBUF_WRITABLE | PyBUF_C_CONTIGUOUS) < 0)
        Py_CLEAR(answer);
    return answer;
}

static PyObject *nothing(void)
{
    Py_INCREF(Py_None);
    return Py_None;
}

static PyObject *or_nothing(PyObject *answer, int right)
{
    if (right)
        return answer;
    Py_XDECREF(answer);
    return nothing();
}

/* What a request was taken from, to be given back. */
typedef struct {
    Py_buffer views[4];
    int count;
} Held;

static void give_back(Held *held)
{
    while (held->count)
        PyBuffer_Release(&held->views[--held->count]);
}

/* The rows of a request; 0 if it is not one, and nothing to release then. */
static int take_request(PyObject *given, PyObject *beside, const Reader *reader, Request *x,
                        Held *held)
{
    *x = (Request){0};
    held->count = 0;
    if (beside) {
        Py_buffer *view = &held->views[held->count];
        const char format = take(beside, view, 2);
        held->count += format != 0;
        if (format != 'f' || view->shape[1] != reader->beside)
            goto wrong;
        x->beside = view->buf;
    }
    if (!Py_IS_TYPE(given, &PyTuple_Type)) {
        Py_buffer *view = &held->views[held->count];
        const char format = take(given, view, 2);
        held->count += format != 0;
        if (format != 'f' || view->shape[1] != reader->features)
            goto wrong;
        x->rows = view->shape[0];
        x->dense = view->buf;
    } else {
        const size parts = PyTuple_Size(given);
        if ((parts != 2 && parts != 3) || reader->centred)
            goto wrong;
        Py_buffer *indptr = &held->views[held->count];
        if (!take_integers(PyTuple_GetItem(given, 0), indptr))
            goto wrong;
        held->count++;
        Py_buffer *indices = &held->views[held->count];
        if (!take_integers(PyTuple_GetItem(given, 1), indices))
            goto wrong;
        held->count++;
        x->entries = indices->len / indices->itemsize;
        PyObject *values = parts == 3 ? PyTuple_GetItem(given, 2) : Py_None;
        if (values != Py_None) {
            Py_buffer *view = &held->views[held->count];
            const char format = take(values, view, 1);
            held->count += format != 0;
            if ((format != 'f' && format != 'd') || view->len / view->itemsize != x->entries)
                goto wrong;
            x->values = view->buf;
            x->doubled = format == 'd';
        }
        if (indptr->len == 0)
            goto wrong;
        x->rows = indptr->len / indptr->itemsize - 1;
        x->indptr = indptr->buf;
        x->indices = indices->buf;
        x->wide_indptr = indptr->itemsize == 8;
        x->wide_indices = indices->itemsize == 8;
    }
    if (!beside || held->views[0].shape[0] == x->rows)
        return 1;
wrong:
    give_back(held);
    return 0;
}

/* The memory for a request: for no more rows at a time than it has. */
static int work_for(Work *work, Needs *needs, const Request *x)
{
    needs->rows = x->rows < needs->rows ? most(x->rows, 1) : needs->rows;
    needs->entries = entries_together(x, needs->rows);
    needs->input = x->dense ? needs->input : 0;
    return work_new(work, needs);
}

static int is_long(const Request *x, const Reader *reader, size widest)
{
    const size work = x->dense ? x->rows * reader->features : x->entries;
    return (work + x->rows * widest) * widest > LET_GO_ABOVE;
}

/* network.answer(x[, position]) */
static PyObject *network_answer(PyObject *self, PyObject *const *args, size count)
{
    const Network *network = (const Network *)self;
    const size num_classes = answers_of(&network->chain);
    Request x;
    Held held;
    if (count < 1 || count > 2 ||
        !take_request(args[0], count == 2 ? args[1] : NULL, &network->reader, &x, &held))
        return nothing();
    Py_buffer view;
    PyObject *answer = new_answer(x.rows, num_classes, &view);
    if (answer) {
        Needs needs = network->needs;
        Work work;
        if (work_for(&work, &needs, &x)) {
            const int let_go = is_long(&x, &network->reader, needs.widest);
            PyThreadState *state = let_go ? PyEval_SaveThread() : NULL;
            const int right = network_forward(network, &x, &work, &needs, view.buf);
            if (state)
                PyEval_RestoreThread(state);
            free(work.memory);
            PyBuffer_Release(&view);
            answer = or_nothing(answer, right);
        } else {
            PyBuffer_Release(&view);
            Py_CLEAR(answer);
            PyErr_NoMemory();
        }
    }
    give_back(&held);
    return answer;
}

/* --- networks from arrays ---------------------------------------------------------------------- */

static void map_free(Map *map)
{
    free(map->weight);
    free(map->bias);
}

static void finish_free(Finish *finish)
{
    free(finish->scale);
    free(finish->shift);
    free(finish->norm_weight);
    free(finish->norm_bias);
}

static void chain_free(Chain *chain)
{
    for (size i = 0; chain->blocks && i < chain->num_blocks; i++) {
        Block *block = chain->blocks + i;
        for (size e = 0; block->maps && e < block->num_maps; e++)
            map_free(block->maps + e);
        free(block->maps);
        map_free(&block->chooser);
        map_free(&block->project);
        finish_free(&block->finish);
    }
    free(chain->blocks);
    chain->blocks = NULL;
}

static void reader_free(Reader *reader)
{
    free(reader->mean);
    free(reader->deviation);
}

static int refuse(const char *message)
{
    if (!PyErr_Occurred())
        PyErr_SetString(PyExc_TypeError, message);
    return 0;
}

static int does_not_fit(void)
{
    if (!PyErr_Occurred())
        PyErr_SetString(PyExc_ValueError, "weights and biases of layers do not fit together");
    return 0;
}

/* A copy of float32 [count], filled up with zeros to whole lanes, or NULL for None, which is only
 * right where `may_be_none`; 0 with an error set if it is anything else. */
static int vector_from(PyObject *given, size count, int may_be_none, float **vector)
{
    *vector = NULL;
    if (given == Py_None)
        return may_be_none ? 1 : refuse("an array is missing");
    Py_buffer view;
    const char format = take(given, &view, 1);
    if (!format)
        return refuse("a bias is a contiguous float32 array [out]");
    int right = 1;
    if (format != 'f')
        right = refuse("a bias is a contiguous float32 array [out]");
    else if (view.shape[0] != count)
        right = does_not_fit();
    else if (!(*vector = zeros(round_up(count, LANE)))) {
        PyErr_NoMemory();
        right = 0;
    } else {
        memcpy(*vector, view.buf, count * sizeof(float));
    }
    PyBuffer_Release(&view);
    return right;
}

/* Copies weights [in, out] into a map, which is all zeros before. */
static int map_fill(Map *map, const float *weight, const float *bias, size in, size out, int by_row)
{
    map->in = in;
    map->out = out;
    map->padded = round_up(out, LANE);
    map->by_row = by_row;
    if (out < 1 || (in && map->padded > PTRDIFF_MAX / (size)sizeof(float) / in))
        return does_not_fit();
    map->bias = zeros(map->padded);
    map->weight = zeros(in * map->padded);
    if (!map->bias || !map->weight) {
        PyErr_NoMemory();
        return 0;
    }
    if (bias)
        memcpy(map->bias, bias, out * sizeof(float));
    for (size k = 0; k < in; k++)
        for (size c = 0; c < out; c++) {
            const size panel = c / PANEL * PANEL, left = map->padded - panel;
            const size wide = left < PANEL ? left : PANEL;
            const size place = by_row ? k * map->padded + c : panel * in + k * wide + (c - panel);
            map->weight[place] = weight[k * out + c];
        }
    return 1;
}

/* Maps from weights [in, out], or [E, in, out], and biases with as many dimensions less one, or
 * None for no bias. */
static int maps_from(PyObject *weights, PyObject *biases, int dimensions, int by_row, Map **maps,
                     size *count)
{
    Py_buffer weight, bias;
    const char format = take(weights, &weight, dimensions);
    if (!format)
        return refuse("a weight is a contiguous float32 array [in, out]");
    int right = format == 'f' || refuse("a weight is a contiguous float32 array [in, out]");
    const int has_bias = biases != Py_None;
    char of_bias = 0;
    if (right && has_bias) {
        of_bias = take(biases, &bias, dimensions - 1);
        right = of_bias == 'f' || refuse("a bias is a contiguous float32 array [out]");
    }
    if (right) {
        const size num = dimensions == 3 ? weight.shape[0] : 1;
        const size in = weight.shape[dimensions - 2], out = weight.shape[dimensions - 1];
        if (num < 1 || num > MOST_EXPERTS || (has_bias && bias.shape[dimensions - 2] != out) ||
            (has_bias && dimensions == 3 && bias.shape[0] != num))
            right = does_not_fit();
        else if (!(*maps = calloc((size_t)num, sizeof(Map)))) {
            PyErr_NoMemory();
            right = 0;
        }
        *count = right ? num : 0;
        for (size e = 0; right && e < num; e++)
            right = map_fill(*maps + e, (const float *)weight.buf + e * in * out,
                             has_bias ? (const float *)bias.buf + e * out : NULL, in, out, by_row);
    }
    if (of_bias)
        PyBuffer_Release(&bias);
    PyBuffer_Release(&weight);
    return right;
}

/* The same for one map. */
static int map_from(PyObject *weight, PyObject *bias, int by_row, Map *map)
{
    Map *maps = NULL;
    size count = 0;
    const int right = maps_from(weight, bias, 2, by_row, &maps, &count);
    if (maps)
        *map = *maps;
    free(maps);
    return right;
}

static int finish_norm(PyObject *weight, PyObject *bias, PyObject *epsilon, size width,
                       Finish *finish)
{
    if (!vector_from(weight, width, 1, &finish->norm_weight))
        return 0;
    if (!finish->norm_weight)
        return 1;
    finish->epsilon = (float)PyFloat_AsDouble(epsilon);
    return !PyErr_Occurred() && vector_from(bias, width, 0, &finish->norm_bias);
}

enum { WEIGHT, BIAS, RELU, TOP_K, CHOOSER, PROJECT, PROJECT_BIAS, SHIFT, NORM, NORM_BIAS, EPSILON,
       NORM_LAST, PARTS };

/* One layer from a pair (weight, bias), with a ReLU behind it if `relu`, or from all its parts. */
static int block_from(Block *block, PyObject *given, int is_first, int relu)
{
    if (!PyTuple_Check(given) || (PyTuple_Size(given) != 2 && PyTuple_Size(given) != PARTS))
        return refuse("a layer is a tuple of a weight and a bias");
    const int is_pair = PyTuple_Size(given) == 2;
    PyObject *part[PARTS];
    for (int i = 0; i < PARTS; i++)
        part[i] = is_pair && i > BIAS ? Py_None : PyTuple_GetItem(given, i);
    const long top_k = is_pair ? 0 : PyLong_AsLong(part[TOP_K]);
    if (PyErr_Occurred())
        return 0;
    if (!maps_from(part[WEIGHT], part[BIAS], top_k ? 3 : 2, is_first, &block->maps,
                   &block->num_maps))
        return 0;
    const size in = block->maps[0].in, out = block->maps[0].out;
    Finish *finish = &block->finish;
    finish->relu = is_pair ? relu : PyObject_IsTrue(part[RELU]) == 1;
    finish->norm_last = !is_pair && PyObject_IsTrue(part[NORM_LAST]) == 1;
    block->top_k = top_k;
    if (top_k) {
        const int gated = part[PROJECT] != Py_None;
        if (top_k < 0 || top_k > block->num_maps)
            return does_not_fit();
        if (!map_from(part[CHOOSER], Py_None, is_first && !gated, &block->chooser) ||
            (gated && !map_from(part[PROJECT], part[PROJECT_BIAS], is_first, &block->project)))
            return 0;
        if (block->chooser.out != block->num_maps ||
            block->chooser.in != (gated ? block->project.out : in) ||
            (gated && block->project.in != in))
            return does_not_fit();
    }
    if (!vector_from(part[SHIFT], out, 1, &finish->shift))
        return 0;
    if (finish->shift) {
        finish->scale = zeros(round_up(out, LANE));
        for (size c = 0; finish->scale && c < out; c++)
            finish->scale[c] = 1;
        if (!finish->scale)
            return PyErr_NoMemory(), 0;
    }
    return finish_norm(part[NORM], part[NORM_BIAS], part[EPSILON], out, finish);
}

/* The layers of a chain that reads rows of `in` values, any number if that is −1, and what they
 * need. A ReLU is behind all pairs but the last. */
static int chain_from(Chain *chain, PyObject *given, size in, int reads_features, Needs *needs)
{
    if (!PyTuple_Check(given) || PyTuple_Size(given) == 0)
        return refuse("a network is a tuple of at least one layer");
    const size count = PyTuple_Size(given);
    chain->blocks = calloc((size_t)count, sizeof(Block));
    if (!chain->blocks)
        return PyErr_NoMemory(), 0;
    chain->num_blocks = count;
    for (size i = 0; i < count; i++) {
        Block *block = chain->blocks + i;
        if (!block_from(block, PyTuple_GetItem(given, i), reads_features && !i, i + 1 < count))
            return 0;
        if (in >= 0 && block->maps[0].in != in)
            return does_not_fit();
        in = block->maps[0].out;
        needs->widest = most(needs->widest, block->maps[0].padded);
        needs->experts = most(needs->experts, block->chooser.padded);
        needs->project = most(needs->project, block->project.padded);
        needs->top_k = most(needs->top_k, block->top_k);
    }
    return 1;
}

/* How a chain's features are read, of which the last `beside` are given apart. */
static int reader_from(Reader *reader, PyObject *mean, PyObject *deviation, size beside, size in,
                       int unit_sum, const Needs *needs)
{
    if (beside < 0 || beside > in || in - beside > INT32_MAX)
        return does_not_fit();
    reader->features = in - beside;
    reader->beside = beside;
    reader->unit_sum = unit_sum;
    reader->each_once = unit_sum || needs->top_k;
    if (!vector_from(mean, reader->features, 1, &reader->mean) ||
        !vector_from(deviation, reader->features, !reader->mean, &reader->deviation))
        return 0;
    for (size i = 0; reader->mean && i < reader->features; i++)
        reader->centred |= reader->mean[i] != 0;
    return 1;
}

static size input_of(const Reader *reader)
{
    return reader->beside || reader->deviation || reader->unit_sum
               ? reader->features + reader->beside
               : 0;
}

/* Network(layers[, beside, mean, deviation]) */
static PyObject *network_new(PyTypeObject *type, PyObject *args, PyObject *keywords)
{
    PyObject *given, *mean = Py_None, *deviation = Py_None;
    size beside = 0;
    if (!PyArg_ParseTuple(args, "O!|nOO:Network", &PyTuple_Type, &given, &beside, &mean,
                          &deviation))
        return NULL;
    if (keywords && PyDict_Size(keywords))
        return PyErr_SetString(PyExc_TypeError, "Network takes no keywords"), NULL;
    Network *network = (Network *)((allocfunc)PyType_GetSlot(type, Py_tp_alloc))(type, 0);
    if (!network)
        return NULL;
    Needs *needs = &network->needs;
    if (chain_from(&network->chain, given, -1, 1, needs) &&
        reader_from(&network->reader, mean, deviation, beside, network->chain.blocks[0].maps[0].in,
                    0, needs)) {
        needs->rows = needs->top_k ? EXPERT_ROWS : BLOCK_ROWS;
        needs->input = input_of(&network->reader);
        return (PyObject *)network;
    }
    Py_DECREF(network);
    return NULL;
}

static void network_dealloc(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    chain_free(&((Network *)self)->chain);
    reader_free(&((Network *)self)->reader);
    ((freefunc)PyType_GetSlot(type, Py_tp_free))(self);
    Py_DECREF(type);
}

/* --- known nodes ----------------------------------------------------------------------------- */

/* Stored answers. Ids are the rows themselves; or found in `ids`, sorted, whose rows `order` says
 * if there is one; or found in the dictionary `rows`. */
typedef struct {
    PyObject_HEAD
    Py_buffer logits, ids, order;
    int has_logits, has_ids, has_order;
    PyObject *rows;
} Known;

static size row_of_integer(const Known *known, int64_t id)
{
    const size num_nodes = known->logits.shape[0];
    if (!known->has_ids)
        return id >= 0 && id < num_nodes ? (size)id : -1;
    const int64_t *ids = known->ids.buf;
    size low = 0, high = num_nodes;
    while (low < high) {
        const size middle = low + (high - low) / 2;
        if (ids[middle] < id)
            low = middle + 1;
        else
            high = middle;
    }
    if (low == num_nodes || ids[low] != id)
        return -1;
    if (!known->has_order)
        return low;
    const int64_t row = ((const int64_t *)known->order.buf)[low];
    return row >= 0 && row < num_nodes ? (size)row : -1;
}

#define NO_ID -2 /* not given as the ids of known nodes are */

/* Row of one node, −1 for one that is not known. */
static size row_of_object(const Known *known, PyObject *node)
{
    long long number;
    PyObject *found = node;
    if (known->rows) {
        if (!Py_IS_TYPE(node, &PyUnicode_Type))
            return NO_ID;
        found = PyDict_GetItemWithError(known->rows, node);
        if (!found) {
            PyErr_Clear();
            return -1;
        }
    }
    if (!Py_IS_TYPE(found, &PyLong_Type))
        return NO_ID;
    number = PyLong_AsLongLong(found);
    if (number == -1 && PyErr_Occurred()) {
        PyErr_Clear();
        return NO_ID;
    }
    if (!known->rows)
        return row_of_integer(known, number);
    return number >= 0 && number < known->logits.shape[0] ? (size)number : -1;
}

static PyObject *known_answer(PyObject *self, PyObject *nodes)
{
    const Known *known = (const Known *)self;
    const int is_list = Py_IS_TYPE(nodes, &PyList_Type);
    Py_buffer array, view;
    size num_rows;
    if (is_list) {
        num_rows = PyList_Size(nodes);
    } else {
        if (known->rows || !take_integers(nodes, &array))
            return nothing();
        num_rows = array.len / array.itemsize;
    }
    const size num_classes = known->logits.shape[1];
    const float *stored = known->logits.buf;
    PyObject *answer = new_answer(num_rows, num_classes, &view);
    if (answer) {
        float *out = view.buf;
        size i = 0;
        for (; i < num_rows; i++) {
            size row;
            if (!is_list) {
                row = row_of_integer(known, integer(array.buf, array.itemsize == 8, i));
            } else {
                /* NULL only if another thread has shortened the list since */
                PyObject *node = PyList_GetItem(nodes, i);
                if (!node)
                    PyErr_Clear();
                row = node ? row_of_object(known, node) : -1;
            }
            if (row < 0)
                break;
            memcpy(out + i * num_classes, stored + row * num_classes, num_classes * sizeof(float));
        }
        PyBuffer_Release(&view);
        if (i < num_rows) {
            Py_DECREF(answer);
            answer = nothing();
        }
    }
    if (!is_list)
        PyBuffer_Release(&array);
    return answer;
}

static void known_dealloc(PyObject *self)
{
    Known *known = (Known *)self;
    PyTypeObject *type = Py_TYPE(self);
    if (known->has_logits)
        PyBuffer_Release(&known->logits);
    if (known->has_ids)
        PyBuffer_Release(&known->ids);
    if (known->has_order)
        PyBuffer_Release(&known->order);
    Py_CLEAR(known->rows);
    ((freefunc)PyType_GetSlot(type, Py_tp_free))(self);
    Py_DECREF(type);
}

static PyObject *known_new(PyTypeObject *type, PyObject *args, PyObject *keywords)
{
    PyObject *logits, *ids, *order, *rows;
    if (!PyArg_ParseTuple(args, "OOOO:Known", &logits, &ids, &order, &rows))
        return NULL;
    Known *known = (Known *)((allocfunc)PyType_GetSlot(type, Py_tp_alloc))(type, 0);
    if (!known)
        return NULL;
    const char format = take(logits, &known->logits, 2);
    known->has_logits = format != 0;
    int right = format == 'f' && known->logits.shape[1] > 0 && !(keywords && PyDict_Size(keywords));
    if (right && ids != Py_None) {
        known->has_ids = take_integers(ids, &known->ids);
        right = known->has_ids && known->ids.itemsize == 8 &&
                known->ids.shape[0] == known->logits.shape[0];
    }
    if (right && order != Py_None) {
        known->has_order = take_integers(order, &known->order);
        right = known->has_order && known->order.itemsize == 8 &&
                known->order.shape[0] == known->logits.shape[0];
    }
    if (right && rows != Py_None) {
        right = PyDict_Check(rows);
        Py_INCREF(rows);
        known->rows = rows;
    }
    if (right)
        return (PyObject *)known;
    Py_DECREF(known);
    PyErr_SetString(PyExc_TypeError,
                    "Known takes logits float32 [N, C], ids and order int64 [N] or None, and a "
                    "dictionary or None");
    return NULL;
}

/* --- students that read neighbours -------------------------------------------------------------- */

/* One gate and its two decoders: logits = u_X + a (u_A - u_X). The encoder's norm and ReLU stand
 * behind its map, those of the structure in `embed`. Without a gate the encoder's answer is added
 * to the structure before `embed`, and the one decoder, `from_features`, reads both. */
typedef struct {
    Chain encoder, from_structure, from_features;
    Finish embed;
    float *gate; /* of the structure, and behind it of the features, both padded; or NULL */
    float gate_bias;
} Head;

/* A table of rows that neighbours stand for, and the networks that read their sum. Arrays of the
 * store are read where they are; what they point to is checked where it is read. */
typedef struct {
    PyObject_HEAD
    PyObject *known;
    Py_buffer held[5]; /* table, its scale, column, observed, hash factors */
    int num_held;
    const float *wide, *scale;
    const int8_t *small;
    const int64_t *column, *factors;
    const uint8_t *observed;
    size num_nodes, num_rows, width, padded, num_hashes, most_ids;
    float power, blend;
    float *bias;
    int num_heads; /* the second is that of nodes without neighbours */
    Head heads[2];
    Chain predictor; /* none: every node goes through the table */
    Reader reader;
    Needs needs;
} Streams;

/* Neighbours of the rows of a request: places in `columns` of the table, `ends[r]` those of row r;
 * or what is known of them already. */
typedef struct {
    size used, room;
    int64_t *columns;
    size *ends;
    const float *parts, *known;
} Around;

enum { HASH_PRIME = 2147483647 };

static int ascending(const void *a, const void *b)
{
    const int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x > y) - (x < y);
}

/* Adds the neighbours that one node names; 0 if the list is not right. */
static int add_neighbors(const Streams *s, PyObject *ids, Around *around)
{
    const Known *known = (const Known *)s->known;
    const int is_list = Py_IS_TYPE(ids, &PyList_Type);
    Py_buffer array;
    if (!is_list && (known->rows || !take_integers(ids, &array)))
        return 0;
    const size count = is_list ? PyList_Size(ids) : array.len / array.itemsize;
    int right = count <= s->most_ids;
    if (right && count > around->room - around->used) {
        const size room = 2 * around->room + count;
        int64_t *columns = realloc(around->columns, (size_t)room * sizeof(int64_t));
        right = columns != NULL;
        around->columns = right ? columns : around->columns;
        around->room = right ? room : around->room;
    }
    int64_t *own = around->columns + around->used;
    size named = 0;
    for (size i = 0; right && i < count; i++) {
        size row;
        if (is_list) {
            PyObject *id = PyList_GetItem(ids, i);
            if (!id)
                PyErr_Clear();
            row = id ? row_of_object(known, id) : NO_ID;
            right = row != NO_ID;
        } else {
            row = row_of_integer(known, integer(array.buf, array.itemsize == 8, i));
        }
        if (row < 0 || !s->observed[row])
            continue;
        own[named] = row;
        /* in order mostly: then nothing is moved */
        for (size k = named; count <= 64 && k > 0 && own[k - 1] > row; k--) {
            own[k] = own[k - 1];
            own[k - 1] = row;
        }
        named++;
    }
    if (!is_list)
        PyBuffer_Release(&array);
    if (count > 64)
        qsort(own, (size_t)named, sizeof(int64_t), ascending);
    size kept = 0;
    int64_t before = -1;
    for (size i = 0; i < named; i++) {
        if (own[i] == before)
            continue;
        before = own[i];
        const int64_t column = s->column[before];
        if (column < 0)
            continue;
        right &= column < (s->factors ? HASH_PRIME : s->num_rows);
        own[kept++] = column;
    }
    around->used += kept;
    return right;
}

/* The neighbours of all nodes of a request; 0 if they are not lists of ids. */
static int take_neighbors(const Streams *s, PyObject *lists, size rows, Around *around)
{
    if (!Py_IS_TYPE(lists, &PyList_Type) || PyList_Size(lists) != rows)
        return 0;
    around->room = 32;
    around->ends = malloc((size_t)(rows + 1) * sizeof(size));
    around->columns = malloc((size_t)around->room * sizeof(int64_t));
    if (!around->ends || !around->columns)
        return 0;
    for (size r = 0; r < rows; r++) {
        PyObject *ids = PyList_GetItem(lists, r);
        if (!ids)
            PyErr_Clear();
        if (!ids || !add_neighbors(s, ids, around))
            return 0;
        around->ends[r] = around->used;
    }
    return 1;
}

INLINE void add_row(const Streams *s, size place, float sign, float *sum)
{
    const size whole = s->width / LANE * LANE;
    if (s->wide) {
        const float *row = s->wide + place * s->width;
        for (size c = 0; c < whole; c += LANE)
            *(lane *)(sum + c) += sign * *(const lane *)(row + c);
        for (size c = whole; c < s->width; c++)
            sum[c] += sign * row[c];
    } else {
        const int8_t *row = s->small + place * s->width;
        const float scale = sign * s->scale[place];
        for (size c = 0; c < s->width; c++)
            sum[c] += scale * row[c];
    }
}

/* Sum of the rows that a node's neighbours stand for, divided as the student has it. */
FOR_EACH_CPU
static void sum_rows(const Streams *s, const int64_t *columns, size count, float *sum)
{
    memset(sum, 0, s->padded * sizeof(float));
    for (size i = 0; i < count; i++) {
        for (size k = 0; k < s->num_hashes; k++) {
            const int64_t *f = s->factors + k, next = s->num_hashes;
            const int64_t place = (columns[i] * f[0] + f[next]) % HASH_PRIME % s->num_rows;
            const int64_t odd = (columns[i] * f[2 * next] + f[3 * next]) % HASH_PRIME % 2;
            add_row(s, place, odd ? -1 : 1, sum);
        }
        if (!s->factors)
            add_row(s, columns[i], 1, sum);
    }
    const float divisor = s->power && count > 1 ? powf((float)count, s->power) : 1;
    for (size c = 0; divisor != 1 && c < s->width; c++)
        sum[c] /= divisor;
}

/* Logits of rows from the streams of a head, in `u_x`. `h_a` are the structure's parts, which are
 * changed, and each of the rest has room for all rows. */
FOR_EACH_CPU
static void decode(const Head *head, const Rows *h, size width, float *const *h_a,
                   float *const *h_x, float *const *u_a, float *const *u_x, const Work *work,
                   size widest)
{
    const size padded = round_up(width, LANE), rows = h->num_rows;
    const size num_classes = answers_of(&head->from_features);
    follow(&head->encoder, *h, h_x, work, widest);
    for (size r = 0; r < rows; r++) {
        for (size c = 0; !head->gate && c < width; c++)
            h_a[r][c] += h_x[r][c];
        finish_row(&head->embed, width, h_a[r]);
    }
    const Rows from_a = {.num_rows = rows, .dense = (const float *const *)h_a};
    if (!head->gate) {
        follow(&head->from_features, from_a, u_x, work, widest);
        return;
    }
    const Rows from_x = {.num_rows = rows, .dense = (const float *const *)h_x};
    follow(&head->from_structure, from_a, u_a, work, widest);
    follow(&head->from_features, from_x, u_x, work, widest);
    for (size r = 0; r < rows; r++) {
        const float sum = head->gate_bias + dot(head->gate, h_a[r], padded) +
                          dot(head->gate + padded, h_x[r], padded);
        const float gate = 1 / (1 + expf(-sum));
        for (size c = 0; c < num_classes; c++)
            u_x[r][c] += gate * (u_a[r][c] - u_x[r][c]);
    }
}

/* Pointers for some rows, and the rows themselves as layers read them. */
typedef struct {
    const float *dense[BLOCK_ROWS];
    Entries sparse[BLOCK_ROWS];
    float *h_a[BLOCK_ROWS], *h_x[BLOCK_ROWS], *u_a[BLOCK_ROWS], *u_x[BLOCK_ROWS];
    size row[BLOCK_ROWS];
    Rows h;
} Some;

static void choose_row(Some *some, const Some *all, size r)
{
    const size i = some->h.num_rows++;
    if (all->h.sparse)
        some->sparse[i] = all->h.sparse[r];
    else
        some->dense[i] = all->h.dense[r];
    some->h_a[i] = all->h_a[r];
    some->h_x[i] = all->h_x[r];
    some->u_a[i] = all->u_a[r];
    some->u_x[i] = all->u_x[r];
    some->row[i] = r;
}

static void choose_none(Some *some, const Some *all)
{
    some->h = (Rows){.features = all->h.features,
                     .dense = some->dense,
                     .sparse = all->h.sparse ? some->sparse : NULL};
}

static int streams_forward(const Streams *s, const Request *x, const Around *around,
                           const Work *work, const Needs *needs, float *logits)
{
    const size num_classes = answers_of(&s->heads[0].from_features);
    const int routed = s->predictor.num_blocks > 0;
    const size step = needs->widest;
    float share[BLOCK_ROWS];
    Some all, some;
    int64_t end = 0;
    if (!x->dense && integer(x->indptr, x->wide_indptr, 0) != 0)
        return 0;
    for (size start = 0; start < x->rows; start += needs->rows) {
        all.h = (Rows){.num_rows = x->rows - start < needs->rows ? x->rows - start : needs->rows};
        if (!take_rows(&s->reader, x, start, &end, work, needs->entries, &all.h))
            return 0;
        const size rows = all.h.num_rows;
        for (size r = 0; r < rows; r++) {
            float *own = work->own + r * 4 * step;
            all.h_a[r] = own;
            all.h_x[r] = own + step;
            all.u_a[r] = own + 2 * step;
            all.u_x[r] = own + 3 * step;
            const size node = start + r;
            if (around->parts) {
                share[r] = around->known[node];
                memset(own, 0, s->padded * sizeof(float));
                if (share[r] > 0 || (!routed && s->num_heads == 1))
                    memcpy(own, around->parts + node * s->width, s->width * sizeof(float));
            } else {
                const size first = around->ends && node ? around->ends[node - 1] : 0;
                const size degree = around->ends ? around->ends[node] - first : 0;
                sum_rows(s, around->columns + first, degree, own);
                share[r] = degree ? (float)(degree / ((double)degree + s->blend)) : 0;
            }
            for (size c = 0; c < s->width; c++)
                own[c] += s->bias[c];
        }
        if (routed) { /* the predictor's guess, where it counts */
            choose_none(&some, &all);
            for (size r = 0; r < rows; r++)
                if (!(share[r] >= 1))
                    choose_row(&some, &all, r);
            follow(&s->predictor, some.h, some.h_x, work, step);
            for (size i = 0; i < some.h.num_rows; i++) {
                const float known = share[some.row[i]];
                float *own = some.h_a[i];
                const float *guess = some.h_x[i];
                for (size c = 0; c < s->width; c++)
                    own[c] = known > 0 ? guess[c] + known * (own[c] - guess[c]) : guess[c];
            }
        }
        for (int i = 0; i < s->num_heads; i++) {
            if (s->num_heads == 1) {
                decode(s->heads, &all.h, s->width, all.h_a, all.h_x, all.u_a, all.u_x, work, step);
                break;
            }
            choose_none(&some, &all);
            for (size r = 0; r < rows; r++)
                if ((share[r] > 0) != i)
                    choose_row(&some, &all, r);
            decode(s->heads + i, &some.h, s->width, some.h_a, some.h_x, some.u_a, some.u_x, work,
                   step);
        }
        for (size r = 0; r < rows; r++)
            if (!hand_over(all.u_x[r], num_classes, logits + (start + r) * num_classes))
                return 0;
    }
    return x->dense || end == x->entries;
}

/* streams.answer(x), (x, neighbors) or (x, parts, known) */
static PyObject *streams_answer(PyObject *self, PyObject *const *args, size count)
{
    const Streams *s = (const Streams *)self;
    const size num_classes = answers_of(&s->heads[0].from_features);
    Request x;
    Held held, given = {.count = 0};
    Around around = {0};
    if (count < 1 || count > 3 || !take_request(args[0], NULL, &s->reader, &x, &held))
        return nothing();
    int right = 1;
    if (count == 2 && args[1] != Py_None)
        right = take_neighbors(s, args[1], x.rows, &around);
    for (size i = 1; count == 3 && right && i < 3; i++) {
        Py_buffer *view = &given.views[given.count];
        const char format = take(args[i], view, 2);
        given.count += format != 0;
        right = format == 'f' && view->shape[0] == x.rows &&
                view->shape[1] == (i == 1 ? s->width : 1);
    }
    if (count == 3 && right) {
        around.parts = given.views[0].buf;
        around.known = given.views[1].buf;
    }
    Py_buffer view;
    Work work;
    Needs needs = s->needs;
    PyObject *answer = right ? new_answer(x.rows, num_classes, &view) : nothing();
    if (right && answer && work_for(&work, &needs, &x)) {
        const int let_go =
            is_long(&x, &s->reader, needs.widest) || around.used * s->width > LET_GO_ABOVE;
        PyThreadState *state = let_go ? PyEval_SaveThread() : NULL;
        right = streams_forward(s, &x, &around, &work, &needs, view.buf);
        if (state)
            PyEval_RestoreThread(state);
        free(work.memory);
        PyBuffer_Release(&view);
        answer = or_nothing(answer, right);
    } else if (right && answer) {
        PyBuffer_Release(&view);
        Py_CLEAR(answer);
        PyErr_NoMemory();
    }
    free(around.columns);
    free(around.ends);
    give_back(&given);
    give_back(&held);
    return answer;
}

static void streams_dealloc(PyObject *self)
{
    Streams *s = (Streams *)self;
    PyTypeObject *type = Py_TYPE(self);
    while (s->num_held)
        PyBuffer_Release(&s->held[--s->num_held]);
    Py_CLEAR(s->known);
    free(s->bias);
    for (int i = 0; i < 2; i++) {
        chain_free(&s->heads[i].encoder);
        chain_free(&s->heads[i].from_structure);
        chain_free(&s->heads[i].from_features);
        finish_free(&s->heads[i].embed);
        free(s->heads[i].gate);
    }
    chain_free(&s->predictor);
    reader_free(&s->reader);
    ((freefunc)PyType_GetSlot(type, Py_tp_free))(self);
    Py_DECREF(type);
}

/* An array of the store, held until the end; its elements have one of `formats`. */
static const void *hold(Streams *s, PyObject *array, int dimensions, const char *formats,
                        size itemsize, const size *shape)
{
    Py_buffer *view = &s->held[s->num_held];
    const char format = take(array, view, dimensions);
    if (!format)
        return refuse("Streams takes contiguous arrays"), NULL;
    s->num_held++;
    int right = strchr(formats, format) && view->itemsize == itemsize;
    for (int i = 0; right && i < dimensions; i++)
        right = shape[i] < 0 || view->shape[i] == shape[i];
    return right ? view->buf : (refuse("Streams was given an array of another kind"), NULL);
}

static int head_from(Head *head, PyObject *given, size in, size width, size num_classes,
                     Needs *needs)
{
    PyObject *encoder, *scale, *shift, *norm, *norm_bias, *epsilon, *gate, *structure, *features;
    double bias;
    if (!PyArg_ParseTuple(given, "OOOOOOOdOO", &encoder, &scale, &shift, &norm, &norm_bias,
                          &epsilon, &gate, &bias, &structure, &features))
        return 0;
    float *both = NULL;
    const int gated = gate != Py_None;
    const size padded = round_up(width, LANE);
    if (gated != (structure != Py_None))
        return refuse("a head has a gate and two decoders, or none and one");
    if (!chain_from(&head->encoder, encoder, in, 1, needs) ||
        (gated && !chain_from(&head->from_structure, structure, width, 0, needs)) ||
        !chain_from(&head->from_features, features, width, 0, needs) ||
        !vector_from(scale, width, 1, &head->embed.scale) ||
        !vector_from(shift, width, scale == Py_None, &head->embed.shift) ||
        !finish_norm(norm, norm_bias, epsilon, width, &head->embed) ||
        !vector_from(gate, 2 * width, 1, &both))
        return 0;
    head->embed.relu = 1;
    head->gate_bias = (float)bias;
    head->gate = gated ? zeros(2 * padded) : NULL;
    if (head->gate) {
        memcpy(head->gate, both, width * sizeof(float));
        memcpy(head->gate + padded, both + width, width * sizeof(float));
    }
    free(both);
    if (gated && !head->gate)
        return PyErr_NoMemory(), 0;
    const Chain *chains[] = {&head->encoder, &head->from_features, &head->from_structure};
    for (int i = 0; i < 2 + gated; i++)
        if (answers_of(chains[i]) != (i ? num_classes : width))
            return does_not_fit();
    return 1;
}

/* Streams(known, (table, scale, column, observed, factors), (power, blend, most_ids, num_classes),
 *         bias, heads, predictor, (unit_sum, mean, deviation)) */
static PyObject *streams_new(PyTypeObject *type, PyObject *args, PyObject *keywords)
{
    PyObject *known, *table, *scale, *column, *observed, *factors, *bias, *heads, *predictor;
    PyObject *mean, *deviation;
    float power, blend;
    size most_ids, num_classes;
    int unit_sum;
    if (!PyArg_ParseTuple(args, "O!(OOOOO)(ffnn)OO!O(pOO):Streams", known_type, &known, &table,
                          &scale, &column, &observed, &factors, &power, &blend, &most_ids,
                          &num_classes, &bias, &PyTuple_Type, &heads, &predictor, &unit_sum, &mean,
                          &deviation))
        return NULL;
    if (keywords && PyDict_Size(keywords))
        return PyErr_SetString(PyExc_TypeError, "Streams takes no keywords"), NULL;
    Streams *s = (Streams *)((allocfunc)PyType_GetSlot(type, Py_tp_alloc))(type, 0);
    if (!s)
        return NULL;
    Py_INCREF(known);
    s->known = known;
    s->power = power;
    s->blend = blend;
    s->most_ids = most_ids;
    s->num_nodes = ((Known *)known)->logits.shape[0];
    const size any[] = {-1, -1}, nodes[] = {s->num_nodes};
    Needs *needs = &s->needs;
    const void *rows = scale == Py_None ? hold(s, table, 2, "f", 4, any)
                                        : hold(s, table, 2, "b", 1, any);
    int right = rows != NULL;
    if (right) {
        s->num_rows = s->held[0].shape[0];
        s->width = s->held[0].shape[1];
        s->padded = round_up(s->width, LANE);
        s->wide = scale == Py_None ? rows : NULL;
        s->small = scale == Py_None ? NULL : rows;
        right = s->width > 0 || does_not_fit();
    }
    if (right && scale != Py_None)
        right = (s->scale = hold(s, scale, 1, "f", 4, &s->num_rows)) != NULL;
    right = right && (s->column = hold(s, column, 1, "lq", 8, nodes)) != NULL &&
            (s->observed = hold(s, observed, 1, "?", 1, nodes)) != NULL;
    if (right && factors != Py_None) {
        const size shape[] = {2, 2, -1};
        right = (s->factors = hold(s, factors, 3, "lq", 8, shape)) != NULL;
        s->num_hashes = right ? s->held[s->num_held - 1].shape[2] : 0;
        for (size i = 0; right && i < 4 * s->num_hashes; i++)
            right = (s->factors[i] >= 0 && s->factors[i] < HASH_PRIME) || does_not_fit();
        right = right && (s->num_rows > 0 || does_not_fit());
    }
    s->num_heads = (int)PyTuple_Size(heads);
    right = right && ((s->num_heads == 1 || s->num_heads == 2) || does_not_fit()) &&
            vector_from(bias, s->width, 0, &s->bias);
    size in = -1;
    for (int i = 0; right && i < s->num_heads; i++) {
        PyObject *head = PyTuple_GetItem(heads, i);
        right = (PyTuple_Check(head) || refuse("a head is a tuple")) &&
                head_from(s->heads + i, head, in, s->width, num_classes, needs);
        in = right ? s->heads[0].encoder.blocks[0].maps[0].in : -1;
    }
    if (right && predictor != Py_None) {
        right = chain_from(&s->predictor, predictor, in, 1, needs) &&
                (answers_of(&s->predictor) == s->width || does_not_fit());
    }
    right = right && reader_from(&s->reader, mean, deviation, 0, in, unit_sum, needs);
    if (!right) {
        Py_DECREF(s);
        return NULL;
    }
    needs->rows = BLOCK_ROWS;
    needs->widest = most(needs->widest, s->padded);
    needs->own = 4 * needs->widest;
    needs->input = input_of(&s->reader);
    return (PyObject *)s;
}

/* --- students that read bands ----------------------------------------------------------------- */

/* FMLP-O and FMLP-S, see students/fmlp.py. A layer reads one power of all bands and weighs each
 * with a gate against the features; the last one is the output, the only one of FMLP-S. Bands are
 * pre-activations, or coefficients that a map of each band makes such. */
typedef struct {
    PyObject_HEAD
    size num_layers, num_bands, width, padded, given; /* given: values of a node's bands */
    int released, low_only; /* the output's gate weighs features; the low band stands for all */
    size coefficients, num_maps, num_heads;
    Map *maps;               /* of coefficients, without bias; none for pre-activations */
    float *bias, *factor;    /* of a band, padded; of a layer and band: what its map's result takes */
    float *gate, *gate_bias; /* of a layer: of a band, behind it of the features, both padded */
    Chain encoder, re_encoder, from_features;
    Chain predictor; /* of bands, for nodes without; none: their gates are closed to the graph */
    Chain *heads;    /* of each band, or one for all */
    Reader reader;
    Needs needs;
} Bands;

/* The bands of some rows: `width` values to a block where they are pre-activations already. */
typedef struct {
    const float *of[BLOCK_ROWS];
    int encoded;
} Blocks;

/* z [rows, padded]: what a layer reads of a band. */
INLINE void read_band(const Bands *s, const Blocks *blocks, size layer, size band, size rows,
                      float *const *z)
{
    const size block = layer * s->num_bands + band;
    const int relu = s->num_layers > 1;
    if (!blocks->encoded) {
        for (size r = 0; r < rows; r++) {
            const float *from = blocks->of[r] + block * s->width;
            memset(z[r] + s->padded - LANE, 0, LANE * sizeof(float));
            for (size c = 0; c < s->width; c++)
                z[r][c] = relu && from[c] < 0 ? 0 : from[c];
        }
        return;
    }
    const float *from[BLOCK_ROWS];
    float factors[BLOCK_ROWS];
    for (size r = 0; r < rows; r++) {
        from[r] = blocks->of[r] + block * s->coefficients;
        factors[r] = s->factor[block];
        memcpy(z[r], s->bias + band * s->padded, s->padded * sizeof(float));
    }
    dense_map(s->maps + band, rows, from, z, relu, factors);
}

/* Moves sums from the features' part to that of a band, as far as its gate says: adds
 * gate * (of_band - of_features) to each, `times` over. The gate reads z and what is behind it. */
INLINE void weigh_band(const Bands *s, size layer, size rows, float *const *z,
                       float *const *of_band, float *const *of_features, size count, float times,
                       float *const *sum)
{
    const float *weight = s->gate + 2 * layer * s->padded;
    const int turned = s->released && layer + 1 == s->num_layers;
    for (size r = 0; r < rows; r++) {
        const float product = s->gate_bias[layer] + dot(weight, z[r], 2 * s->padded);
        const float gate = times / (1 + expf(turned ? product : -product));
        for (size c = 0; c < count; c++)
            sum[r][c] += gate * (of_band[r][c] - of_features[r][c]);
    }
}

/* The features' part of a layer for all bands, which is the whole where every gate is closed. */
INLINE void begin_sum(const Bands *s, size rows, float *const *from, size count, float *const *sum)
{
    for (size r = 0; r < rows; r++)
        for (size c = 0; c < count; c++)
            sum[r][c] = (float)s->num_bands * from[r][c];
}

FOR_EACH_CPU
static int bands_forward(const Bands *s, const Request *x, const float *given, const Work *work,
                         const Needs *needs, float *logits)
{
    const size num_classes = answers_of(&s->from_features), classes = round_up(num_classes, LANE);
    const size last = s->num_layers - 1, step = needs->widest;
    const size read = s->low_only ? 1 : s->num_bands;
    const int open = given || s->predictor.num_blocks;
    float *u[BLOCK_ROWS], *z[BLOCK_ROWS], *sum[BLOCK_ROWS], *of_features[BLOCK_ROWS],
        *of_band[BLOCK_ROWS], *guess[BLOCK_ROWS];
    int64_t end = 0;
    if (!x->dense && integer(x->indptr, x->wide_indptr, 0) != 0)
        return 0;
    for (size start = 0; start < x->rows; start += needs->rows) {
        Rows h = {.num_rows = x->rows - start < needs->rows ? x->rows - start : needs->rows};
        if (!take_rows(&s->reader, x, start, &end, work, needs->entries, &h))
            return 0;
        const size rows = h.num_rows;
        if (given && !are_finite(given + start * s->given, rows * s->given))
            return 0;
        Blocks blocks = {.encoded = given && s->maps};
        for (size r = 0; r < rows; r++) {
            z[r] = work->own + r * needs->own; /* beside each other, as the gate reads them */
            u[r] = z[r] + s->padded;
            sum[r] = u[r] + s->padded;
            of_features[r] = sum[r] + most(s->padded, classes);
            of_band[r] = of_features[r] + classes;
            guess[r] = of_band[r] + classes;
            blocks.of[r] = given ? given + (start + r) * s->given : guess[r];
        }
        const Rows from_z = {.num_rows = rows, .dense = (const float *const *)z};
        const Rows from_u = {.num_rows = rows, .dense = (const float *const *)u};
        const Rows from_sum = {.num_rows = rows, .dense = (const float *const *)sum};
        if (open && !given)
            follow(&s->predictor, h, guess, work, step);
        follow(&s->encoder, h, u, work, step);
        for (size layer = 0; layer < last; layer++) {
            begin_sum(s, rows, u, s->padded, sum);
            for (size band = 0; open && band < s->num_bands; band++) {
                read_band(s, &blocks, layer, band, rows, z);
                weigh_band(s, layer, rows, z, z, u, s->padded, 1, sum);
            }
            follow(&s->re_encoder, from_sum, u, work, step);
        }
        follow(&s->from_features, from_u, of_features, work, step);
        begin_sum(s, rows, of_features, num_classes, sum);
        for (size band = 0; open && band < read; band++) {
            read_band(s, &blocks, last, band, rows, z);
            follow(s->heads + (s->num_heads > 1 ? band : 0), from_z, of_band, work, step);
            weigh_band(s, last, rows, z, of_band, of_features, num_classes,
                       (float)(s->num_bands / read), sum);
        }
        for (size r = 0; r < rows; r++)
            if (!hand_over(sum[r], num_classes, logits + (start + r) * num_classes))
                return 0;
    }
    return x->dense || end == x->entries;
}

/* bands.answer(x) or (x, bands) */
static PyObject *bands_answer(PyObject *self, PyObject *const *args, size count)
{
    const Bands *s = (const Bands *)self;
    Request x;
    Held held, beside = {.count = 0};
    if (count < 1 || count > 2 || !take_request(args[0], NULL, &s->reader, &x, &held))
        return nothing();
    int right = 1;
    if (count == 2) {
        Py_buffer *view = &beside.views[0];
        const char format = take(args[1], view, 2);
        beside.count += format != 0;
        right = format == 'f' && view->shape[0] == x.rows && view->shape[1] == s->given;
    }
    const float *given = count == 2 && right ? beside.views[0].buf : NULL;
    Py_buffer view;
    Work work;
    Needs needs = s->needs;
    PyObject *answer = right ? new_answer(x.rows, answers_of(&s->from_features), &view) : nothing();
    if (right && answer && work_for(&work, &needs, &x)) {
        const int let_go = is_long(&x, &s->reader, needs.widest) ||
                           (given && x.rows * s->given * s->padded > LET_GO_ABOVE);
        PyThreadState *state = let_go ? PyEval_SaveThread() : NULL;
        right = bands_forward(s, &x, given, &work, &needs, view.buf);
        if (state)
            PyEval_RestoreThread(state);
        free(work.memory);
        PyBuffer_Release(&view);
        answer = or_nothing(answer, right);
    } else if (right && answer) {
        PyBuffer_Release(&view);
        Py_CLEAR(answer);
        PyErr_NoMemory();
    }
    give_back(&beside);
    give_back(&held);
    return answer;
}

static void bands_dealloc(PyObject *self)
{
    Bands *s = (Bands *)self;
    PyTypeObject *type = Py_TYPE(self);
    for (size i = 0; s->maps && i < s->num_maps; i++)
        map_free(s->maps + i);
    for (size i = 0; s->heads && i < s->num_heads; i++)
        chain_free(s->heads + i);
    free(s->maps);
    free(s->heads);
    free(s->bias);
    free(s->factor);
    free(s->gate);
    free(s->gate_bias);
    chain_free(&s->encoder);
    chain_free(&s->re_encoder);
    chain_free(&s->from_features);
    chain_free(&s->predictor);
    reader_free(&s->reader);
    ((freefunc)PyType_GetSlot(type, Py_tp_free))(self);
    Py_DECREF(type);
}

/* A copy of float32 [count * width], each row of it filled up with zeros to whole lanes. */
static int rows_from(PyObject *given, size count, size width, float **rows)
{
    const size padded = round_up(width, LANE);
    float *flat = NULL;
    if (!vector_from(given, count * width, 0, &flat))
        return 0;
    *rows = zeros(count * padded);
    for (size i = 0; *rows && i < count; i++)
        memcpy(*rows + i * padded, flat + i * width, width * sizeof(float));
    free(flat);
    return *rows || (PyErr_NoMemory(), 0);
}

/* The layers of a chain that must answer so many values. */
static int chain_to(Chain *chain, PyObject *given, size in, size out, int reads_features,
                    Needs *needs)
{
    return chain_from(chain, given, in, reads_features, needs) &&
           (answers_of(chain) == out || does_not_fit());
}

static int heads_from(Bands *s, PyObject *given, size num_classes)
{
    const size count = PyTuple_Size(given);
    if (count != 1 && count != s->num_bands)
        return does_not_fit();
    s->heads = calloc((size_t)count, sizeof(Chain));
    if (!s->heads)
        return PyErr_NoMemory(), 0;
    s->num_heads = count;
    for (size i = 0; i < count; i++)
        if (!chain_to(s->heads + i, PyTuple_GetItem(given, i), s->width, num_classes, 0, &s->needs))
            return 0;
    return 1;
}

/* Bands((layers, bands, low_only, released), encoder, re_encoder, heads, from_features, predictor,
 *       (gate, gate_bias), None or (weight, bias, factor), (mean, deviation))
 *
 * gate is [layers * 2 width], weight [bands, coefficients, width], bias [bands * width], factor
 * [layers * bands]; re_encoder is None where there is one layer, predictor where nodes without
 * bands are answered by their features. */
static PyObject *bands_new(PyTypeObject *type, PyObject *args, PyObject *keywords)
{
    PyObject *encoder, *re_encoder, *heads, *from_features, *predictor, *gate, *gate_bias, *maps;
    PyObject *mean, *deviation;
    size layers, bands;
    int low_only, released;
    if (!PyArg_ParseTuple(args, "(nnpp)OOO!OO(OO)O(OO):Bands", &layers, &bands, &low_only,
                          &released, &encoder, &re_encoder, &PyTuple_Type, &heads, &from_features,
                          &predictor, &gate, &gate_bias, &maps, &mean, &deviation))
        return NULL;
    if (keywords && PyDict_Size(keywords))
        return PyErr_SetString(PyExc_TypeError, "Bands takes no keywords"), NULL;
    if (layers < 1 || bands < 1 || layers > MOST_BANDS || bands > MOST_BANDS)
        return does_not_fit(), NULL;
    Bands *s = (Bands *)((allocfunc)PyType_GetSlot(type, Py_tp_alloc))(type, 0);
    if (!s)
        return NULL;
    s->num_layers = layers;
    s->num_bands = bands;
    s->low_only = low_only;
    s->released = released;
    Needs *needs = &s->needs;
    int right = chain_from(&s->encoder, encoder, -1, 1, needs);
    const size in = right ? s->encoder.blocks[0].maps[0].in : 0;
    const size width = s->width = right ? answers_of(&s->encoder) : 0;
    s->padded = round_up(width, LANE);
    right = right && chain_from(&s->from_features, from_features, width, 0, needs);
    const size num_classes = right ? answers_of(&s->from_features) : 0;
    right = right && heads_from(s, heads, num_classes) &&
            (layers == 1 || chain_to(&s->re_encoder, re_encoder, width, width, 0, needs)) &&
            (predictor == Py_None ||
             chain_to(&s->predictor, predictor, in, layers * bands * width, 1, needs)) &&
            rows_from(gate, 2 * layers, width, &s->gate) &&
            vector_from(gate_bias, layers, 0, &s->gate_bias);
    s->coefficients = width;
    if (right && maps != Py_None) {
        PyObject *weight, *bias, *factor;
        right = (PyTuple_Check(maps) || refuse("maps of bands are a tuple")) &&
                PyArg_ParseTuple(maps, "OOO", &weight, &bias, &factor) &&
                maps_from(weight, Py_None, 3, 0, &s->maps, &s->num_maps) &&
                ((s->num_maps == bands && s->maps[0].out == width && s->maps[0].in > 0) ||
                 does_not_fit()) &&
                rows_from(bias, bands, width, &s->bias) &&
                vector_from(factor, layers * bands, 0, &s->factor);
        s->coefficients = right ? s->maps[0].in : 0;
    }
    right = right && reader_from(&s->reader, mean, deviation, 0, in, 0, needs);
    if (!right) {
        Py_DECREF(s);
        return NULL;
    }
    const size classes = round_up(num_classes, LANE);
    s->given = layers * bands * s->coefficients;
    needs->rows = BLOCK_ROWS;
    needs->own = 2 * s->padded + most(s->padded, classes) + 2 * classes +
                 (s->predictor.num_blocks ? round_up(layers * bands * width, LANE) : 0);
    needs->input = input_of(&s->reader);
    return (PyObject *)s;
}

/* --- probabilities --------------------------------------------------------------------------- */

/* softmax(logits, temperature): in place, and the same array again; None if it is none of ours. */
static PyObject *softmax(PyObject *self, PyObject *const *args, size count)
{
    (void)self;
    Py_buffer view;
    const double given = count == 2 ? PyFloat_AsDouble(args[1]) : 0;
    if (!(given > 0)) {
        if (!PyErr_Occurred())
            PyErr_SetString(PyExc_TypeError, "softmax takes logits and a temperature above 0");
        return NULL;
    }
    const char format = take(args[0], &view, 2);
    if (format != 'f' || view.readonly || view.shape[1] == 0) {
        if (format)
            PyBuffer_Release(&view);
        return nothing();
    }
    const float temperature = (float)given;
    const size num_classes = view.shape[1];
    float *row = view.buf;
    for (size r = 0; r < view.shape[0]; r++, row += num_classes) {
        float most = row[0], sum = 0;
        for (size c = 1; c < num_classes; c++)
            most = row[c] > most ? row[c] : most;
        for (size c = 0; c < num_classes; c++)
            sum += row[c] = expf((row[c] - most) / temperature);
        for (size c = 0; c < num_classes; c++)
            row[c] /= sum;
    }
    PyBuffer_Release(&view);
    Py_INCREF(args[0]);
    return args[0];
}

/* --- the module ------------------------------------------------------------------------------ */

static PyMethodDef network_methods[] = {
    {"answer", (PyCFunction)(void (*)(void))network_answer, METH_FASTCALL, NULL},
    {NULL, NULL, 0, NULL},
};
static PyType_Slot network_slots[] = {
    {Py_tp_new, network_new},
    {Py_tp_dealloc, network_dealloc},
    {Py_tp_methods, network_methods},
    {0, NULL},
};
static PyType_Spec network_spec = {
    "limbeck.runtime._kernels.Network", sizeof(Network), 0, Py_TPFLAGS_DEFAULT, network_slots};

static PyMethodDef streams_methods[] = {
    {"answer", (PyCFunction)(void (*)(void))streams_answer, METH_FASTCALL, NULL},
    {NULL, NULL, 0, NULL},
};
static PyType_Slot streams_slots[] = {
    {Py_tp_new, streams_new},
    {Py_tp_dealloc, streams_dealloc},
    {Py_tp_methods, streams_methods},
    {0, NULL},
};
static PyType_Spec streams_spec = {
    "limbeck.runtime._kernels.Streams", sizeof(Streams), 0, Py_TPFLAGS_DEFAULT, streams_slots};

static PyMethodDef bands_methods[] = {
    {"answer", (PyCFunction)(void (*)(void))bands_answer, METH_FASTCALL, NULL},
    {NULL, NULL, 0, NULL},
};
static PyType_Slot bands_slots[] = {
    {Py_tp_new, bands_new},
    {Py_tp_dealloc, bands_dealloc},
    {Py_tp_methods, bands_methods},
    {0, NULL},
};
static PyType_Spec bands_spec = {
    "limbeck.runtime._kernels.Bands", sizeof(Bands), 0, Py_TPFLAGS_DEFAULT, bands_slots};

static PyMethodDef known_methods[] = {
    {"answer", known_answer, METH_O, NULL},
    {NULL, NULL, 0, NULL},
};
static PyType_Slot known_slots[] = {
    {Py_tp_new, known_new},
    {Py_tp_dealloc, known_dealloc},
    {Py_tp_methods, known_methods},
    {0, NULL},
};
static PyType_Spec known_spec = {
    "limbeck.runtime._kernels.Known", sizeof(Known), 0, Py_TPFLAGS_DEFAULT, known_slots};

static int add_type(PyObject *module, PyType_Spec *spec)
{
    PyObject *type = PyType_FromModuleAndSpec(module, spec, NULL);
    const int failed = !type || PyModule_AddType(module, (PyTypeObject *)type) < 0;
    Py_XDECREF(type);
    return failed;
}

static PyMethodDef functions[] = {
    {"softmax", (PyCFunction)(void (*)(void))softmax, METH_FASTCALL, NULL},
    {NULL, NULL, 0, NULL},
};
static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT,
                                        .m_name = "limbeck.runtime._kernels",
                                        .m_size = -1,
                                        .m_methods = functions};

PyMODINIT_FUNC PyInit__kernels(void)
{
    PyObject *numpy = PyImport_ImportModule("numpy");
    if (!numpy)
        return NULL;
    np_empty = PyObject_GetAttrString(numpy, "empty");
    np_float32 = PyObject_CallMethod(numpy, "dtype", "s", "float32");
    Py_DECREF(numpy);
    PyObject *module = np_empty && np_float32 ? PyModule_Create(&definition) : NULL;
    known_type = module ? PyType_FromModuleAndSpec(module, &known_spec, NULL) : NULL;
    if (!known_type || PyModule_AddType(module, (PyTypeObject *)known_type) < 0 ||
        add_type(module, &network_spec) || add_type(module, &streams_spec) ||
        add_type(module, &bands_spec)) {
        Py_XDECREF(module);
        return NULL;
    }
    return module;
}
