/* The fast path of the runtime: a student that is an MLP, and the lookup of known nodes.
 *
 * Two types, both made from buffers and asked with one call each:
 *
 *   Mlp(layers).answer(x)     layers: a tuple of (weight float32 [in, out], bias float32 [out]);
 *                             x: (indptr, indices[, values]) or a dense float32 array [B, F]
 *   Known(logits, ids, order, rows).answer(nodes)
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
#define LET_GO_ABOVE 500000 /* multiplications from which other threads may run meanwhile */

typedef Py_ssize_t size;
typedef float lane __attribute__((vector_size(64), aligned(4)));
typedef int32_t bits __attribute__((vector_size(64), aligned(4)));

static PyObject *np_empty, *np_float32;

/* --- layers ---------------------------------------------------------------------------------- */

/* A map h @ weight + bias, columns filled up with zeros to whole lanes. The first layer's weights
 * stay row by row, for sparse rows; the others are cut into panels of PANEL columns, each of which
 * is read from end to end. */
typedef struct {
    size in, out, padded;
    float *weight, *bias;
} Layer;

typedef struct {
    PyObject_HEAD
    size num_layers, widest;
    Layer *layers;
} Mlp;

static size round_up(size n, size to) { return (n + to - 1) / to * to; }

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

/* `rows` rows of `lanes` lanes: y = h @ w + bias. All sizes but `in` are constants once inlined. */
INLINE void tile(int rows, int lanes, const float *h, size h_step, const float *w, size w_step,
                 const float *bias, size in, float *y, size y_step, int relu)
{
    lane sum[TILE_ROWS][TILE_LANES];
#pragma GCC unroll 4
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
        for (int l = 0; l < lanes; l++)
            sum[r][l] = *(const lane *)(bias + l * LANE);
    for (size k = 0; k < in; k++, w += w_step) {
#pragma GCC unroll 4
        for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
            for (int l = 0; l < lanes; l++)
                sum[r][l] += h[r * h_step + k] * *(const lane *)(w + l * LANE);
    }
#pragma GCC unroll 4
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
        for (int l = 0; l < lanes; l++) {
            if (relu)
                sum[r][l] = rectified(sum[r][l]);
            *(lane *)(y + r * y_step + l * LANE) = sum[r][l];
        }
}

INLINE void some_rows(int lanes, size rows, const float *h, size h_step, const float *w,
                      size w_step, const float *bias, size in, float *y, size y_step, int relu)
{
    size r = 0;
    for (; r + TILE_ROWS <= rows; r += TILE_ROWS)
        tile(TILE_ROWS, lanes, h + r * h_step, h_step, w, w_step, bias, in, y + r * y_step, y_step,
             relu);
    for (; r < rows; r++)
        tile(1, lanes, h + r * h_step, h_step, w, w_step, bias, in, y + r * y_step, y_step, relu);
}

/* y [rows, padded] = h [rows, in] through a layer. */
INLINE void dense_layer(const Layer *layer, int is_first, const float *h, size h_step, size rows,
                        float *y, size y_step, int relu)
{
    for (size c = 0; c < layer->padded; c += PANEL) {
        const float *w = layer->weight + (is_first ? c : c * layer->in);
        int lanes = layer->padded - c >= PANEL ? TILE_LANES : 1;
        size w_step = is_first ? layer->padded : (size)lanes * LANE;
        if (lanes == TILE_LANES)
            some_rows(TILE_LANES, rows, h, h_step, w, w_step, layer->bias + c, layer->in, y + c,
                      y_step, relu);
        else
            some_rows(1, rows, h, h_step, w, w_step, layer->bias + c, layer->in, y + c, y_step,
                      relu);
    }
}

/* --- requests -------------------------------------------------------------------------------- */

/* Rows of a request: dense, or the entries of sparse ones. `wide` says that integers have 8 bytes,
 * `doubled` that values have. */
typedef struct {
    size rows, entries;
    const float *dense;
    const void *indptr, *indices, *values;
    int wide_indptr, wide_indices, doubled;
} Request;

INLINE int64_t integer(const void *array, int wide, size i)
{
    return wide ? ((const int64_t *)array)[i] : ((const int32_t *)array)[i];
}

/* Sum of the weights of a sparse row's columns, `lanes` of them from column `c` on; 0 if an entry
 * is not one. */
INLINE int sparse_lanes(int lanes, const Layer *layer, const Request *x, int wide_indices,
                        size first, size last, size c, float *y, int relu)
{
    lane sum[SPARSE_LANES];
#pragma GCC unroll 4
    for (int l = 0; l < lanes; l++)
        sum[l] = *(const lane *)(layer->bias + c + l * LANE);
    for (size e = first; e < last; e++) {
        uint64_t column = (uint64_t)integer(x->indices, wide_indices, e);
        if (column >= (uint64_t)layer->in)
            return 0;
        float value = 1;
        if (x->values) {
            value = x->doubled ? (float)((const double *)x->values)[e]
                               : ((const float *)x->values)[e];
            if (!(value - value == 0))
                return 0;
        }
        const float *w = layer->weight + (size)column * layer->padded + c;
#pragma GCC unroll 4
        for (int l = 0; l < lanes; l++)
            sum[l] += value * *(const lane *)(w + l * LANE);
    }
#pragma GCC unroll 4
    for (int l = 0; l < lanes; l++) {
        if (relu)
            sum[l] = rectified(sum[l]);
        *(lane *)(y + c + l * LANE) = sum[l];
    }
    return 1;
}

INLINE int sparse_row(const Layer *layer, const Request *x, int wide_indices, size first,
                      size last, float *y, int relu)
{
    size c = 0;
    for (; c + SPARSE_LANES * LANE <= layer->padded; c += SPARSE_LANES * LANE)
        if (!sparse_lanes(SPARSE_LANES, layer, x, wide_indices, first, last, c, y, relu))
            return 0;
    for (; c < layer->padded; c += LANE)
        if (!sparse_lanes(1, layer, x, wide_indices, first, last, c, y, relu))
            return 0;
    return 1;
}

/* Logits [rows, C] of a request. `scratch` holds two arrays [BLOCK_ROWS, widest]. Returns 0 where
 * the request is not right, or an answer is not finite. */
FOR_EACH_CPU
static int forward(const Mlp *mlp, const Request *x, float *scratch, float *logits)
{
    const size widest = mlp->widest, num_layers = mlp->num_layers;
    const size num_classes = mlp->layers[num_layers - 1].out;
    const Layer *input = &mlp->layers[0];
    int64_t end = 0;
    if (!x->dense && integer(x->indptr, x->wide_indptr, 0) != 0)
        return 0;
    for (size start = 0; start < x->rows; start += BLOCK_ROWS) {
        const size rows = x->rows - start < BLOCK_ROWS ? x->rows - start : BLOCK_ROWS;
        float *h = scratch, *y = scratch + BLOCK_ROWS * widest;
        const int relu = num_layers > 1;
        if (x->dense) {
            const float *from = x->dense + start * input->in;
            for (size i = 0; i < rows * input->in; i++)
                if (!(from[i] - from[i] == 0))
                    return 0;
            dense_layer(input, 1, from, input->in, rows, h, widest, relu);
        } else {
            for (size r = 0; r < rows; r++) {
                const int64_t begin = end;
                end = integer(x->indptr, x->wide_indptr, start + r + 1);
                if (end < begin || end > x->entries)
                    return 0;
                const int fits =
                    x->wide_indices ? sparse_row(input, x, 1, begin, end, h + r * widest, relu)
                                    : sparse_row(input, x, 0, begin, end, h + r * widest, relu);
                if (!fits)
                    return 0;
            }
        }
        for (size i = 1; i < num_layers; i++) {
            dense_layer(&mlp->layers[i], 0, h, widest, rows, y, widest, i + 1 < num_layers);
            float *swap = h;
            h = y;
            y = swap;
        }
        for (size r = 0; r < rows; r++) {
            float *answer = logits + (start + r) * num_classes;
            for (size c = 0; c < num_classes; c++) {
                answer[c] = h[r * widest + c];
                if (!(answer[c] - answer[c] == 0))
                    return 0;
            }
        }
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

static PyObject *mlp_run(const Mlp *mlp, const Request *x)
{
    const size num_classes = mlp->layers[mlp->num_layers - 1].out;
    Py_buffer view;
    PyObject *answer = new_answer(x->rows, num_classes, &view);
    if (!answer)
        return NULL;
    const size count = 2 * BLOCK_ROWS * mlp->widest;
    void *memory = NULL;
    if (posix_memalign(&memory, 64, count * sizeof(float))) {
        PyBuffer_Release(&view);
        Py_DECREF(answer);
        return PyErr_NoMemory();
    }
    const size work = x->dense ? x->rows * mlp->layers[0].in : x->entries;
    const int let_go = (work + x->rows * mlp->widest) * mlp->widest > LET_GO_ABOVE;
    PyThreadState *state = let_go ? PyEval_SaveThread() : NULL;
    const int right = forward(mlp, x, memory, view.buf);
    if (state)
        PyEval_RestoreThread(state);
    free(memory);
    PyBuffer_Release(&view);
    if (right)
        return answer;
    Py_DECREF(answer);
    return nothing();
}

static PyObject *mlp_sparse(const Mlp *mlp, PyObject *tuple)
{
    const size parts = PyTuple_Size(tuple);
    Py_buffer indptr, indices, values;
    if ((parts != 2 && parts != 3) || !take_integers(PyTuple_GetItem(tuple, 0), &indptr))
        return nothing();
    if (!take_integers(PyTuple_GetItem(tuple, 1), &indices)) {
        PyBuffer_Release(&indptr);
        return nothing();
    }
    PyObject *given = parts == 3 ? PyTuple_GetItem(tuple, 2) : Py_None;
    char format = given == Py_None ? '1' : take(given, &values, 1);
    PyObject *answer = NULL;
    const size entries = indices.len / indices.itemsize;
    if ((format == 'f' || format == 'd' || format == '1') && indptr.len > 0 &&
        (format == '1' || values.len / values.itemsize == entries)) {
        const Request x = {
            .rows = indptr.len / indptr.itemsize - 1,
            .entries = entries,
            .indptr = indptr.buf,
            .indices = indices.buf,
            .values = format == '1' ? NULL : values.buf,
            .wide_indptr = indptr.itemsize == 8,
            .wide_indices = indices.itemsize == 8,
            .doubled = format == 'd',
        };
        answer = mlp_run(mlp, &x);
    } else {
        answer = nothing();
    }
    if (format && format != '1')
        PyBuffer_Release(&values);
    PyBuffer_Release(&indices);
    PyBuffer_Release(&indptr);
    return answer;
}

static PyObject *mlp_dense(const Mlp *mlp, PyObject *array)
{
    Py_buffer rows;
    const char format = take(array, &rows, 2);
    if (!format)
        return nothing();
    PyObject *answer;
    if (format == 'f' && rows.shape[1] == mlp->layers[0].in) {
        const Request x = {.rows = rows.shape[0], .dense = rows.buf};
        answer = mlp_run(mlp, &x);
    } else {
        answer = nothing();
    }
    PyBuffer_Release(&rows);
    return answer;
}

static PyObject *mlp_answer(PyObject *self, PyObject *x)
{
    const Mlp *mlp = (const Mlp *)self;
    return Py_IS_TYPE(x, &PyTuple_Type) ? mlp_sparse(mlp, x) : mlp_dense(mlp, x);
}

static void layers_free(Layer *layers, size count)
{
    for (size i = 0; layers && i < count; i++) {
        free(layers[i].weight);
        free(layers[i].bias);
    }
    free(layers);
}

/* Copies one layer; 0 with an error set if it is not one that follows a layer of width `in`. */
static int layer_from(Layer *layer, PyObject *pair, size in, int is_first)
{
    Py_buffer weight, bias;
    if (!PyTuple_Check(pair) || PyTuple_Size(pair) != 2) {
        PyErr_SetString(PyExc_TypeError, "a layer is a tuple of a weight and a bias");
        return 0;
    }
    char format = take(PyTuple_GetItem(pair, 0), &weight, 2);
    if (format != 'f') {
        if (format)
            PyBuffer_Release(&weight);
        PyErr_SetString(PyExc_TypeError, "a weight is a contiguous float32 array [in, out]");
        return 0;
    }
    format = take(PyTuple_GetItem(pair, 1), &bias, 1);
    if (format != 'f') {
        if (format)
            PyBuffer_Release(&bias);
        PyBuffer_Release(&weight);
        PyErr_SetString(PyExc_TypeError, "a bias is a contiguous float32 array [out]");
        return 0;
    }
    layer->in = weight.shape[0];
    layer->out = weight.shape[1];
    layer->padded = round_up(layer->out, LANE);
    int right = layer->out > 0 && bias.shape[0] == layer->out && (is_first || in == layer->in);
    if (!right) {
        PyErr_SetString(PyExc_ValueError, "weights and biases of layers do not fit together");
    } else {
        layer->bias = zeros(layer->padded);
        layer->weight = zeros(layer->in * layer->padded);
        if (!layer->bias || !layer->weight) {
            PyErr_NoMemory();
            right = 0;
        }
    }
    if (right) {
        const float *from = weight.buf;
        memcpy(layer->bias, bias.buf, layer->out * sizeof(float));
        for (size k = 0; k < layer->in; k++)
            for (size c = 0; c < layer->out; c++) {
                const size panel = c / PANEL * PANEL, left = layer->padded - panel;
                const size wide = left < PANEL ? left : PANEL;
                const size place = is_first ? k * layer->padded + c
                                            : panel * layer->in + k * wide + (c - panel);
                layer->weight[place] = from[k * layer->out + c];
            }
    }
    PyBuffer_Release(&bias);
    PyBuffer_Release(&weight);
    return right;
}

static PyObject *mlp_new(PyTypeObject *type, PyObject *args, PyObject *keywords)
{
    PyObject *given;
    if (!PyArg_ParseTuple(args, "O!:Mlp", &PyTuple_Type, &given))
        return NULL;
    const size count = PyTuple_Size(given);
    if (count == 0 || (keywords && PyDict_Size(keywords))) {
        PyErr_SetString(PyExc_TypeError, "Mlp takes a tuple of at least one layer");
        return NULL;
    }
    Layer *layers = calloc(count, sizeof(Layer));
    if (!layers)
        return PyErr_NoMemory();
    size widest = 0;
    for (size i = 0; i < count; i++) {
        if (!layer_from(&layers[i], PyTuple_GetItem(given, i), i ? layers[i - 1].out : 0, !i)) {
            layers_free(layers, count);
            return NULL;
        }
        widest = layers[i].padded > widest ? layers[i].padded : widest;
    }
    allocfunc allocate = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
    Mlp *mlp = (Mlp *)allocate(type, 0);
    if (!mlp) {
        layers_free(layers, count);
        return NULL;
    }
    mlp->num_layers = count;
    mlp->widest = widest;
    mlp->layers = layers;
    return (PyObject *)mlp;
}

static void mlp_dealloc(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    layers_free(((Mlp *)self)->layers, ((Mlp *)self)->num_layers);
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

/* Row of one node, −1 for one that is not known or not given as the known ones are. */
static size row_of_object(const Known *known, PyObject *node)
{
    long long number;
    PyObject *found = node;
    if (known->rows) {
        if (!Py_IS_TYPE(node, &PyUnicode_Type))
            return -1;
        found = PyDict_GetItemWithError(known->rows, node);
        if (!found) {
            PyErr_Clear();
            return -1;
        }
    }
    if (!Py_IS_TYPE(found, &PyLong_Type))
        return -1;
    number = PyLong_AsLongLong(found);
    if (number == -1 && PyErr_Occurred()) {
        PyErr_Clear();
        return -1;
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

static PyMethodDef mlp_methods[] = {
    {"answer", mlp_answer, METH_O, NULL},
    {NULL, NULL, 0, NULL},
};
static PyType_Slot mlp_slots[] = {
    {Py_tp_new, mlp_new},
    {Py_tp_dealloc, mlp_dealloc},
    {Py_tp_methods, mlp_methods},
    {0, NULL},
};
static PyType_Spec mlp_spec = {
    "limbeck.runtime._kernels.Mlp", sizeof(Mlp), 0, Py_TPFLAGS_DEFAULT, mlp_slots};

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
    if (!module || add_type(module, &mlp_spec) || add_type(module, &known_spec)) {
        Py_XDECREF(module);
        return NULL;
    }
    return module;
}
