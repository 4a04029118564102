// The ABI of the native core: one function type per op, plain pointers and sizes, a status as the result.
// Nothing here knows of Python or torch. The caller allocates every output and workspace and has checked
// shapes, dtypes and strides; kernels neither allocate nor synchronise, and index with 64 bits.
#pragma once

#include <stdint.h>

enum dcfast_status {
  DCFAST_OK = 0,
  DCFAST_INVALID_DTYPE = 1,
  DCFAST_OUT_OF_RANGE = 2,
  // A CUDA error e is reported as DCFAST_CUDA_ERROR + e.
  DCFAST_CUDA_ERROR = 1000,
};

enum dcfast_dtype {
  DCFAST_FLOAT32 = 0,
  DCFAST_FLOAT64 = 1,
  DCFAST_FLOAT16 = 2,
  DCFAST_BFLOAT16 = 3,
  DCFAST_UINT8 = 4,
};

// ---- assign: labels of the nearest centroids --------------------------------------------------------------
// Bytes of the workspace that assign_prepare fills from k centroids of d elements, with those of an earlier call beside
// them or not; labelled says whether the rows have labels (before) by now.
typedef int dcfast_cpu_assign_workspace_fn(int dtype, int64_t k, int64_t d, bool with_previous, bool labelled,
                                           int64_t* bytes);
// Shift, scale, deduplicate and pack the centroids (k x d, rows contiguous) into the workspace (64-byte aligned);
// previous (k x d) may be null.
typedef int dcfast_cpu_assign_prepare_fn(int dtype, const void* centroids, int64_t k, int64_t d, const void* previous,
                                         bool labelled, void* workspace, int n_threads);
// Labels of n rows of x. With previous, before holds those for its centroids, or -1, and bounds what is known of the
// other centroids and will be (n x groups of the wide pass, see dcfast/ops/assign/__init__.py). scratch holds n_threads
// * scratch_bytes(k, d) bytes. counts[0] gains the number of rows that needed a recheck, counts[1] that of the labels
// that differ from before, if that is not null.
typedef int dcfast_cpu_assign_scratch_fn(int dtype, int64_t k, int64_t d, int64_t* bytes);
typedef int dcfast_cpu_assign_fn(int dtype, const void* x, int64_t row_stride, int64_t n, int64_t d,
                                 const void* centroids, int64_t k, const void* previous, const void* workspace,
                                 void* scratch, const int64_t* before, float* bounds, int64_t* labels, int64_t* counts,
                                 int n_threads);

// ---- accumulate: exact sums per cluster ----------------------------------------------------------------------
// Add n rows (n <= 2^22) to words (k x n_words x d, which are left carried) and counts (k). With previous, rows leave
// the cluster that previous says they are counted in, and those that stay are not read. Column i in units of 1 /
// scale[i], a power of two; weight (n doubles) may be null. Labels outside [0, k) are no cluster. The threads work on
// `copies` copies of words and counts; partial and partial_counts hold all but the first, zeros before and after.
typedef int dcfast_cpu_accumulate_fn(int dtype, const void* x, int64_t row_stride, int64_t n, int64_t d,
                                     const int64_t* labels, const int64_t* previous, int64_t k, const double* weight,
                                     const double* scale, int64_t n_words, int64_t* words, int64_t* counts,
                                     int64_t* partial, int64_t* partial_counts, int64_t copies, int n_threads);
// out (k x d) = RN_T(RN64(S) / total), or previous where total is 0.
typedef int dcfast_cpu_means_fn(int dtype, const int64_t* words, int64_t k, int64_t n_words, int64_t d,
                                const int64_t* low, const double* total, const void* previous, void* out,
                                int n_threads);
// Lower smallest and raise largest (copies x d each: infinity and 0 at first) to the magnitudes of the finite non-zero
// elements of w x.
typedef int dcfast_cpu_column_range_fn(int dtype, const void* x, int64_t row_stride, int64_t n, int64_t d,
                                       const double* weight, double* smallest, double* largest, int64_t copies,
                                       int n_threads);
// The grid of dcfast/ops/accumulate/grid.py for the sums of n rows of w x: low (d), scale[i] = 2^-low[i]; found:
// n_words, the exponents of the smallest and of the largest magnitude. ranges: 2 x copies x d of workspace.
typedef int dcfast_cpu_sum_grid_fn(int dtype, const void* x, int64_t row_stride, int64_t n, int64_t d,
                                   const double* weight, int64_t copies, double* ranges, int64_t* low, double* scale,
                                   int64_t* found, int n_threads);

// On the GPU of problems x n rows (at most 2^29) into the words (k x n_words x d each) and counts (k each) of their
// problems, which hold nothing yet if `fresh`. x, labels, previous and weight are of problems x n rows, all but x
// contiguous. Column i in units of 2^low[i]. With a null workspace (16-byte aligned) all that it does is to write how
// many bytes it needs.
typedef int dcfast_cuda_accumulate_fn(int dtype, const void* x, int64_t problem_stride, int64_t row_stride,
                                      int64_t problems, int64_t n, int64_t d, const int64_t* labels,
                                      const int64_t* previous, int64_t k, const double* weight, const int64_t* low,
                                      int64_t n_words, bool fresh, int64_t* words, int64_t* counts, void* workspace,
                                      int64_t* bytes, void* stream);
typedef int dcfast_cuda_means_fn(int dtype, const int64_t* words, int64_t clusters, int64_t n_words, int64_t d,
                                 const int64_t* low, const double* total, const void* previous, void* out,
                                 void* stream);
typedef int dcfast_cuda_column_range_fn(int dtype, const void* x, int64_t row_stride, int64_t n, int64_t d,
                                        const double* weight, double* smallest, double* largest, void* stream);

// ---- inertia ---------------------------------------------------------------------------------------------
// out[i] = RN64(weight[i] * D64(x_i, centroid of its label)); 0 for a label outside [0, k). weight may be null.
typedef int dcfast_cpu_point_distances_fn(int dtype, const void* x, int64_t row_stride, int64_t n, int64_t d,
                                          const void* centroids, int64_t k, const int64_t* labels, const double* weight,
                                          double* out, int n_threads);
// Add n doubles exactly to words, n_threads accumulators of 80 words each, zeroed before the first call.
typedef int dcfast_cpu_exact_sum_add_fn(const double* values, int64_t n, int64_t* words, int n_threads);
// out[0] = the sum of all n_threads accumulators, rounded once.
typedef int dcfast_cpu_exact_sum_round_fn(int64_t* words, int n_threads, double* out);

// centroids: problems x k x d.
typedef int dcfast_cuda_point_distances_fn(int dtype, const void* x, int64_t problem_stride, int64_t row_stride,
                                           int64_t problems, int64_t n, int64_t d, const void* centroids, int64_t k,
                                           const int64_t* labels, const double* weight, double* out, void* stream);
// Adds values (rows x length) exactly to words (rows x 80, zeros at first); out[row] = the sum, rounded once.
typedef int dcfast_cuda_exact_sum_fn(const double* values, int64_t rows, int64_t length, int64_t* words, double* out,
                                     void* stream);

// ---- kmeans_plusplus ---------------------------------------------------------------------------------------
// Bytes of the workspace; with `cached`, 2 bytes per element of x among them.
typedef int dcfast_cpu_kmeans_plusplus_workspace_fn(int dtype, int64_t n, int64_t d, int64_t trials, bool cached,
                                                    int n_threads, int64_t* bytes);
// Start with the row `first` (go on with the workspace of an earlier call if it is negative) and choose `steps` more
// rows, each the best of `trials` drawn with uniform (steps x trials).
typedef int dcfast_cpu_kmeans_plusplus_fn(int dtype, const void* x, int64_t row_stride, int64_t n, int64_t d,
                                          const double* weight, int64_t trials, bool cached, int64_t first,
                                          const double* uniform, int64_t steps, void* workspace, int64_t* chosen,
                                          int n_threads);

// Whole seedings of many problems, the rows offsets[b] to offsets[b + 1] of x and weight from the row first[b] on, with
// uniform (problems x steps x trials): chosen is problems x steps. n_threads x bytes of workspace: those of the largest
// problem for one thread, cached.
typedef int dcfast_cpu_kmeans_plusplus_batch_fn(int dtype, const void* x, int64_t row_stride, const int64_t* offsets,
                                                int64_t problems, int64_t d, const double* weight, int64_t trials,
                                                const int64_t* first, const double* uniform, int64_t steps,
                                                void* workspace, int64_t bytes, int64_t* chosen, int n_threads);

// On the GPU, of at most 2^30 rows: potential (n) holds those to the row that rows (trials) is full of, and sinks to
// those to all the chosen rows (steps + 1), of which that is the first. scale (1) is for what draws count in. The row
// numerators[step, trial] 2^-53 of the way through is a candidate. nearer (trials / 16, rounded up, x n) and words
// (trials x 80) hold zeros; totals is of n / 1024, rounded up, and sums of trials.
typedef int dcfast_cuda_kmeans_plusplus_fn(int dtype, const void* x, int64_t row_stride, int64_t n, int64_t d,
                                           const double* weight, int64_t trials, const int64_t* numerators,
                                           int64_t steps, double* scale, double* potential, uint16_t* nearer,
                                           int64_t* totals, int64_t* words, double* sums, int64_t* rows,
                                           int64_t* chosen, void* stream);

// ---- csr: rows in CSR -----------------------------------------------------------------------------------------
// n rows of d columns: row i holds the elements indptr[i] to indptr[i + 1] of indices (int64 if `wide`, else int32) and
// values, sorted by column, no column twice. Else as for the dense ops.
// bytes[0] of workspace, bytes[1] of scratch for every thread: zeros before the first call, 64-byte aligned.
typedef int dcfast_cpu_csr_assign_workspace_fn(int dtype, int64_t k, int64_t d, int64_t* bytes);
typedef int dcfast_cpu_csr_assign_prepare_fn(int dtype, const void* centroids, int64_t k, int64_t d, void* workspace,
                                             int n_threads);
// rechecked[0] gains the number of rows whose label D64 had to decide.
typedef int dcfast_cpu_csr_assign_fn(int dtype, bool wide, const int64_t* indptr, const void* indices,
                                     const void* values, int64_t n, int64_t d, const void* centroids, int64_t k,
                                     const void* workspace, void* scratch, int64_t* labels, int64_t* rechecked,
                                     int n_threads);
typedef int dcfast_cpu_csr_accumulate_fn(int dtype, bool wide, const int64_t* indptr, const void* indices,
                                         const void* values, int64_t n, int64_t d, const int64_t* labels,
                                         const int64_t* previous, int64_t k, const double* weight, const double* scale,
                                         int64_t n_words, int64_t* words, int64_t* counts, int n_threads);
// smallest and largest: n_threads x d.
typedef int dcfast_cpu_csr_column_range_fn(int dtype, bool wide, const int64_t* indptr, const void* indices,
                                           const void* values, int64_t n, int64_t d, const double* weight,
                                           double* smallest, double* largest, int n_threads);
// Of the rows order[0] to order[n - 1] among those of all the other arguments; those of one label side by side take
// the least time. scratch: n_threads x 16384 elements, zeros before and after.
typedef int dcfast_cpu_csr_point_distances_fn(int dtype, bool wide, const int64_t* indptr, const void* indices,
                                              const void* values, const int64_t* order, int64_t n, int64_t d,
                                              const void* centroids, int64_t k, const int64_t* labels,
                                              const double* weight, void* scratch, double* out, int n_threads);
// out[c * out_stride + i] = the lesser of closest[i] (if that is not null) and RN64(weight[i] * D64(x_i, candidate c)),
// of `count` candidates: rows in CSR like the others, their elements as columns (d x width, zeros past `count`; width a
// multiple of 4) and their squares (width), in any order of additions.
typedef int dcfast_cpu_csr_closer_fn(int dtype, bool wide, const int64_t* indptr, const void* indices,
                                     const void* values, int64_t n, int64_t d, const int64_t* candidate_indptr,
                                     const int64_t* candidate_indices, const void* candidate_values, int64_t count,
                                     int64_t width, const double* columns, const double* squares, const double* weight,
                                     const double* closest, double* out, int64_t out_stride, int n_threads);

// ---- draw_rows ---------------------------------------------------------------------------------------------
// For every seed in [0, 2^32) `runs` times: `count` different rows of a problem, drawn in proportion to shares (one per
// row; null: all the same), then n_uniform numbers. n_threads x 2 most_rows doubles of workspace.
typedef int dcfast_cpu_draw_rows_fn(const int64_t* seeds, const int64_t* offsets, int64_t problems,
                                    const double* shares, int64_t count, int64_t n_uniform, int64_t runs,
                                    double* workspace, int64_t most_rows, int64_t* rows, double* uniform,
                                    int n_threads);

// ---- lloyd: whole runs of many small problems -----------------------------------------------------------------
enum dcfast_empty { DCFAST_EMPTY_FARTHEST = 0, DCFAST_EMPTY_SPLIT = 1, DCFAST_EMPTY_KEEP = 2 };
// Why a run ended: max_iter, the labels stood still, the centroids moved by no more than tol; or that it did not yet.
enum dcfast_lloyd_status {
  DCFAST_LLOYD_MAX_ITER = 0,
  DCFAST_LLOYD_LABELS = 1,
  DCFAST_LLOYD_TOL = 2,
  DCFAST_LLOYD_RUNNING = 3,
};
// Bytes of the workspace of the `team` threads that share a problem of up to n <= 2^22 rows.
typedef int dcfast_cpu_lloyd_workspace_fn(int dtype, int64_t n, int64_t d, int64_t k, int64_t n_words,
                                          int64_t row_words, bool weighted, int team, int64_t* bytes);
// Go on with every problem b whose status is `running`, by at most `iterations`: the rows offsets[b] to offsets[b + 1]
// of x, weight (or null) and labels, from centroids (problems x k x d), in place. n_iter counts its iterations; labels
// are those before, -1 at first. low, scale and n_words are the grid of w x; row_low, row_scale and row_words that of
// x, where tol is in units of the mean variance of a problem's columns (null, null and 0 where it is not). n_threads
// problems at once, or one by a team of threads; n_threads x bytes of workspace.
typedef int dcfast_cpu_lloyd_fn(int dtype, const void* x, int64_t row_stride, const int64_t* offsets, int64_t problems,
                                int64_t d, int64_t k, const double* weight, const int64_t* low, const double* scale,
                                int64_t n_words, const int64_t* row_low, const double* row_scale, int64_t row_words,
                                int64_t max_iter, int64_t iterations, const double* tol, int empty, const int64_t* seed,
                                void* workspace, int64_t bytes, void* centroids, int64_t* labels, double* inertia,
                                int64_t* n_iter, int64_t* status, int n_threads, int team);

// ---- bisect: 2-means of some rows ------------------------------------------------------------------------------
// Bytes of the workspace for m <= 2^22 rows.
typedef int dcfast_cpu_bisect_workspace_fn(int dtype, int64_t m, int64_t d, int64_t n_words, bool weighted,
                                           int n_threads, int64_t* bytes);
// Go on with the 2-means of the rows x[rows[0]] to x[rows[m - 1]] as lloyd does. Once status is no longer `running`,
// order has their numbers by cluster and sizes (2) how many each has; inertia is that of all, inertias (2) of each.
// weight is one for every row of x, or null.
typedef int dcfast_cpu_bisect_fn(int dtype, const void* x, int64_t row_stride, const int64_t* rows, int64_t m,
                                 int64_t d, const double* weight, const int64_t* low, const double* scale,
                                 int64_t n_words, int64_t max_iter, int64_t iterations, double tol, void* workspace,
                                 void* centroids, int64_t* labels, int64_t* n_iter, int64_t* status, int64_t* order,
                                 int64_t* sizes, double* inertia, double* inertias, int n_threads);

// ---- minibatch_step: one batch of rows, in place ---------------------------------------------------------------
// Bytes of the workspace (64-byte aligned) for n <= 2^22 rows.
typedef int dcfast_cpu_minibatch_step_workspace_fn(int dtype, int64_t n, int64_t d, int64_t k, int64_t n_words,
                                                   int n_threads, int64_t* bytes);
// inertia[0] becomes that of the rows for the centroids (k x d) as they are, which then become the means of all that
// they were given: of weight seen (k) so far. weight (n doubles) may be null; low, scale and n_words are the grid of w
// x.
typedef int dcfast_cpu_minibatch_step_fn(int dtype, const void* x, int64_t row_stride, int64_t n, int64_t d,
                                         const double* weight, const int64_t* low, const double* scale, int64_t n_words,
                                         void* workspace, void* centroids, double* seen, int64_t k, double* inertia,
                                         int n_threads);

// ---- split_empty: donors for empty clusters, in place --------------------------------------------------------
typedef int dcfast_cpu_split_empty_fn(int dtype, void* centroids, int64_t* counts, int64_t k, int64_t d, int64_t seed,
                                      int64_t iteration);

// Of several problems; seeds and iterations are read on the device.
typedef int dcfast_cuda_split_empty_fn(int dtype, void* centroids, int64_t* counts, int64_t problems, int64_t k,
                                       int64_t d, const int64_t* seeds, const int64_t* iterations, void* stream);

// ---- sobel_conv2d: normalised grey image, Sobel, convolution ----------------------------------------------
// The sizes of one call, 16 consecutive int64.
struct dcfast_sobel_conv2d_sizes {
  int64_t images, height, width, filters, kernel_h, kernel_w, stride_h, stride_w, padding_h, padding_w, out_h, out_w;
  int64_t image_stride[4];  // in elements, of image, channel, row, column
};

enum dcfast_sobel_conv2d_pass {
  DCFAST_SOBEL_FORWARD = 0,
  DCFAST_SOBEL_BACKWARD_WEIGHT = 1,
  DCFAST_SOBEL_BACKWARD_IMAGE = 2,
};

// What a pass needs: plan[0] units of work (bands of images), plan[1] bytes of packed weights, plan[2] bytes
// of scratch per thread, plan[3] padded filters and plan[4] padded columns of a partial sum of the weight
// pass.
typedef int dcfast_cpu_sobel_conv2d_plan_fn(int pass, int dtype, const dcfast_sobel_conv2d_sizes* sizes, int64_t* plan);
// Pack the weights (filters, 2, kernel_h, kernel_w) for the forward or the image pass.
typedef int dcfast_cpu_sobel_conv2d_pack_fn(int pass, int dtype, const dcfast_sobel_conv2d_sizes* sizes,
                                            const void* weight, void* packed);
// Units [start, stop) of the output (images, filters, out_h, out_w). fold holds what a channel is multiplied
// by and what is added to their sum to give grey; bias may be null. relu: negative outputs become 0.
typedef int dcfast_cpu_sobel_conv2d_fn(int dtype, int image_dtype, const dcfast_sobel_conv2d_sizes* sizes,
                                       const void* image, const double* fold, const void* packed, const void* bias,
                                       bool relu, void* scratch, void* output, int64_t start, int64_t stop,
                                       int n_threads);
// Adds units [start, stop) to total (plan[3] x plan[4] doubles): column k < 2 kernel_h kernel_w is the
// gradient of weight k, the column after them that of the bias. partial holds stop - start such matrices of
// the dtype, summed in the order of the units.
typedef int dcfast_cpu_sobel_conv2d_backward_weight_fn(int dtype, int image_dtype,
                                                       const dcfast_sobel_conv2d_sizes* sizes, const void* image,
                                                       const double* fold, const void* grad, void* scratch,
                                                       void* partial, double* total, int64_t start, int64_t stop,
                                                       int n_threads);
// Units [start, stop) of the image's gradient (images, 3, height, width).
typedef int dcfast_cpu_sobel_conv2d_backward_image_fn(int dtype, const dcfast_sobel_conv2d_sizes* sizes,
                                                      const void* grad, const double* fold, const void* packed,
                                                      void* scratch, void* grad_image, int64_t start, int64_t stop,
                                                      int n_threads);

// On CUDA: weight (filters, 2, kernel_h, kernel_w) is contiguous, scale and bias (filters) are float32, or float64 for
// float64, and may be null. allow_tf32: float32 operands may be rounded to 11 bits.
typedef int dcfast_cuda_sobel_conv2d_fn(int dtype, int image_dtype, bool allow_tf32,
                                        const dcfast_sobel_conv2d_sizes* sizes, const void* image, const double* fold,
                                        const void* weight, const void* scale, const void* bias, bool relu,
                                        void* output, void* stream);
// partial has room for max_rows matrices (filters, 2 kernel_h kernel_w + 1) of float32 (float64 for float64); rows says
// how many were written. Their sum is the gradient of the weights, and in the last column that of the bias.
typedef int dcfast_cuda_sobel_conv2d_backward_weight_fn(int dtype, int image_dtype, bool allow_tf32,
                                                        const dcfast_sobel_conv2d_sizes* sizes, const void* image,
                                                        const double* fold, const void* grad, int64_t max_rows,
                                                        void* partial, int64_t* rows, void* stream);
// The whole of grad_image (images, 3, height, width). It, grad (images, filters, out_h, out_w) and weight are
// contiguous.
typedef int dcfast_cuda_sobel_conv2d_backward_image_fn(int dtype, const dcfast_sobel_conv2d_sizes* sizes,
                                                       const void* grad, const double* fold, const void* weight,
                                                       void* grad_image, void* stream);

// ---- batch_norm_relu_pool ------------------------------------------------------------------------------------
// The sizes of one call, 10 consecutive int64. x is (images, channels, height, width), contiguous or, where
// channels_last is not 0, as (images, height, width, channels); outputs of out_h x out_w and their gradients are the
// latter.
struct dcfast_pool_sizes {
  int64_t images, channels, height, width, kernel, stride, out_h, out_w, channels_last, band;
};

// All take the images [start, stop). partial is images x 2 x channels, a workspace; totals (2 x channels) gain the sums
// of the images in their order. scratch is n_threads x (2 band + 1) rows of width x channels elements, rounded up to 16
// for each thread; a band is of `kernel` rows at least.
//
// Sums of x - pivot and of its square.
typedef int dcfast_cpu_batch_moments_fn(int dtype, const dcfast_pool_sizes* sizes, const void* x, const void* pivot,
                                        void* scratch, double* partial, double* totals, int64_t start, int64_t stop,
                                        int n_threads);
// The largest scale x + shift of each window, or 0, and where in the window it was: row * kernel + column, 255 for 0.
typedef int dcfast_cpu_batch_norm_relu_pool_fn(int dtype, const dcfast_pool_sizes* sizes, const void* x,
                                               const void* scale, const void* shift, void* scratch, void* out,
                                               uint8_t* taken, int64_t start, int64_t stop, int n_threads);
// Sums of the gradient g before pooling and ReLU, and of g (x - mean).
typedef int dcfast_cpu_batch_norm_relu_pool_sums_fn(int dtype, const dcfast_pool_sizes* sizes, const void* grad,
                                                    const uint8_t* taken, const void* x, const void* mean,
                                                    void* scratch, double* partial, double* totals, int64_t start,
                                                    int64_t stop, int n_threads);
// out, laid out as x, = factors[0] g - factors[1] - factors[2] (x - mean), each per channel.
typedef int dcfast_cpu_batch_norm_relu_pool_backward_fn(int dtype, const dcfast_pool_sizes* sizes, const void* grad,
                                                        const uint8_t* taken, const void* x, const void* mean,
                                                        const void* factors, void* scratch, void* out, int64_t start,
                                                        int64_t stop, int n_threads);

// ---- winograd_conv2d -----------------------------------------------------------------------------------------
// The sizes of one call, 6 consecutive int64. x is (images, height, width, in_channels), out and its gradient
// (images, height, width, out_channels), contiguous; chunk is how many tiles of 4 x 4 outputs are worked off at once.
struct dcfast_winograd_sizes {
  int64_t images, in_channels, out_channels, height, width, chunk;
};

// plan becomes the number of chunks, and the elements of the filters, of the scratch (of each thread, or of a call of
// winograd_conv2d_products) and of the totals.
typedef int dcfast_cpu_winograd_conv2d_plan_fn(int dtype, const dcfast_winograd_sizes* sizes, int64_t* plan);
// filters from weight (out_channels, in_channels, 3, 3).
typedef int dcfast_cpu_winograd_conv2d_filters_fn(int dtype, const dcfast_winograd_sizes* sizes, const void* weight,
                                                  void* filters, int n_threads);
// Chunks [start, stop) of out; bias (out_channels) may be null.
typedef int dcfast_cpu_winograd_conv2d_fn(int dtype, const dcfast_winograd_sizes* sizes, const void* x,
                                          const void* filters, const void* bias, void* scratch, void* out,
                                          int64_t start, int64_t stop, int n_threads);
// totals, zero at first, gain the part of the chunks [start, stop) in the gradient of the weights, which the last
// function makes of them: (out_channels, in_channels, 3, 3).
typedef int dcfast_cpu_winograd_conv2d_products_fn(int dtype, const dcfast_winograd_sizes* sizes, const void* x,
                                                   const void* grad, void* scratch, void* totals, int64_t start,
                                                   int64_t stop, int n_threads);
typedef int dcfast_cpu_winograd_conv2d_weight_fn(int dtype, const dcfast_winograd_sizes* sizes, const void* totals,
                                                 void* weight, int n_threads);

// ---- weighted_cross_entropy: the weight of a class is 1 / its size -----------------------------------------------
// total becomes the sum of the targets' weights, NaN if a target is neither in [0, k) nor ignore_index. sizes (k) is
// float32 or float64, as the dtype says.
typedef int dcfast_cpu_weighted_cross_entropy_total_fn(int dtype, const int64_t* target, const void* sizes, int64_t n,
                                                       int64_t k, int64_t ignore_index, double* total);
// logits are n rows of k; sizes (k), losses, maxima and log_sums (n each) are float32 for float32, float16 and
// bfloat16 logits (the CPU functions take the first only) and float64 for float64 ones. losses are the weighted
// losses of the rows, maxima + log_sums their log-sum-exp. sum gains the sum of the losses. gradient (n x k), unless
// null, becomes that of the sum of row_gradients[i] losses[i] (stride 0 if common to all rows); it may take the place
// of logits without padding.
typedef int dcfast_cpu_weighted_cross_entropy_fn(int dtype, const void* logits, int64_t row_stride,
                                                 const int64_t* target, const void* sizes, int64_t n, int64_t k,
                                                 int64_t ignore_index, double label_smoothing, void* losses,
                                                 void* maxima, void* log_sums, double* sum, const void* row_gradients,
                                                 int64_t row_gradient_stride, void* gradient, int n_threads);
// row_gradients (stride 0 if common to all rows) are those of the weighted losses; gradient is n x k.
typedef int dcfast_cpu_weighted_cross_entropy_backward_fn(int dtype, const void* logits, int64_t row_stride,
                                                          const int64_t* target, const void* sizes, int64_t n,
                                                          int64_t k, int64_t ignore_index, double label_smoothing,
                                                          const void* row_gradients, int64_t row_gradient_stride,
                                                          const void* maxima, const void* log_sums, void* gradient,
                                                          int n_threads);
// Loss and, unless null, gradient (n x k), which may take the place of logits without padding: that of the sum of
// row_gradients[i] loss_i (stride 0 if common to all rows; null: 1), in the dtype of losses, divided by total if
// `mean`. sum and total, unless sum is null, become those of the losses and of the targets' weights, in the dtype of
// losses too, sum divided by total if `mean`. weights are 1 / size of the k classes and then their sum; null without
// label smoothing. A target that is no class makes its row's loss and gradient NaN.
typedef int dcfast_cuda_weighted_cross_entropy_fn(int dtype, const void* logits, int64_t row_stride,
                                                  const int64_t* target, const void* sizes, const void* weights,
                                                  int64_t n, int64_t k, int64_t ignore_index, double label_smoothing,
                                                  bool mean, const void* row_gradients, int64_t row_gradient_stride,
                                                  void* losses, void* maxima, void* log_sums, void* sum, void* total,
                                                  void* gradient, void* stream);
// The gradient alone, from what the rows came to; all row_gradients are divided by divisor, unless that is null.
typedef int dcfast_cuda_weighted_cross_entropy_backward_fn(
    int dtype, const void* logits, int64_t row_stride, const int64_t* target, const void* sizes, const void* weights,
    int64_t n, int64_t k, int64_t ignore_index, double label_smoothing, const void* row_gradients,
    int64_t row_gradient_stride, const void* divisor, void* maxima, void* log_sums, void* gradient, void* stream);

// ---- on a GPU -------------------------------------------------------------------------------------------------------
// Bytes of the workspace of assign on the current device.
typedef int dcfast_cuda_assign_workspace_fn(int dtype, int64_t problems, int64_t n, int64_t k, int64_t d,
                                            int64_t* bytes);
// Labels (problems x n, contiguous) of x (problems x n x d) among centroids (problems x k x d), both with any strides,
// in elements; workspace is 256-byte aligned.
typedef int dcfast_cuda_assign_fn(int dtype, const void* x, int64_t x_problem, int64_t x_row, int64_t x_column,
                                  const void* centroids, int64_t c_problem, int64_t c_row, int64_t c_column,
                                  int64_t problems, int64_t n, int64_t k, int64_t d, void* workspace, int64_t* labels,
                                  void* stream);

// An op is one line here and one function of that name in csrc/cpu (or csrc/cuda): dispatch.cpp and
// bindings.cpp are generated from these lists.
#define DCFAST_CPU_OPS(X)          \
  X(assign_workspace)              \
  X(assign_prepare)                \
  X(assign_scratch)                \
  X(assign)                        \
  X(accumulate)                    \
  X(means)                         \
  X(column_range)                  \
  X(sum_grid)                      \
  X(point_distances)               \
  X(exact_sum_add)                 \
  X(exact_sum_round)               \
  X(kmeans_plusplus_workspace)     \
  X(kmeans_plusplus)               \
  X(kmeans_plusplus_batch)         \
  X(csr_assign_workspace)          \
  X(csr_assign_prepare)            \
  X(csr_assign)                    \
  X(csr_accumulate)                \
  X(csr_column_range)              \
  X(csr_point_distances)           \
  X(csr_closer)                    \
  X(draw_rows)                     \
  X(lloyd_workspace)               \
  X(lloyd)                         \
  X(bisect_workspace)              \
  X(bisect)                        \
  X(minibatch_step_workspace)      \
  X(minibatch_step)                \
  X(split_empty)                   \
  X(sobel_conv2d_plan)             \
  X(sobel_conv2d_pack)             \
  X(sobel_conv2d)                  \
  X(sobel_conv2d_backward_weight)  \
  X(sobel_conv2d_backward_image)   \
  X(batch_moments)                 \
  X(batch_norm_relu_pool)          \
  X(batch_norm_relu_pool_sums)     \
  X(batch_norm_relu_pool_backward) \
  X(winograd_conv2d_plan)          \
  X(winograd_conv2d_filters)       \
  X(winograd_conv2d)               \
  X(winograd_conv2d_products)      \
  X(winograd_conv2d_weight)        \
  X(weighted_cross_entropy_total)  \
  X(weighted_cross_entropy)        \
  X(weighted_cross_entropy_backward)

// Those of CPU ops that use the tiles of AMX.
#define DCFAST_AMX_OPS(X) \
  X(assign_workspace)     \
  X(assign_prepare)       \
  X(assign_scratch)       \
  X(assign)

#define DCFAST_CUDA_OPS(X)        \
  X(assign_workspace)             \
  X(assign)                       \
  X(accumulate)                   \
  X(means)                        \
  X(column_range)                 \
  X(point_distances)              \
  X(exact_sum)                    \
  X(kmeans_plusplus)              \
  X(split_empty)                  \
  X(sobel_conv2d)                 \
  X(sobel_conv2d_backward_weight) \
  X(sobel_conv2d_backward_image)  \
  X(weighted_cross_entropy)       \
  X(weighted_cross_entropy_backward)

#ifdef __cplusplus
namespace dcfast {

#define DCFAST_DECLARE(op) dcfast_cpu_##op##_fn op;
namespace baseline {
DCFAST_CPU_OPS(DCFAST_DECLARE)
}
namespace avx2 {
DCFAST_CPU_OPS(DCFAST_DECLARE)
}
namespace avx512 {
DCFAST_CPU_OPS(DCFAST_DECLARE)
}
namespace amx {
DCFAST_AMX_OPS(DCFAST_DECLARE)
}
#undef DCFAST_DECLARE

#define DCFAST_DECLARE(op) dcfast_cuda_##op##_fn op;
namespace cuda {
DCFAST_CUDA_OPS(DCFAST_DECLARE)
const char* error_string(int error);
}  // namespace cuda
#undef DCFAST_DECLARE

// One instruction set's implementation of every op.
struct CpuOps {
  const char* isa;
#define DCFAST_MEMBER(op) dcfast_cpu_##op##_fn* op;
  DCFAST_CPU_OPS(DCFAST_MEMBER)
#undef DCFAST_MEMBER
};

// The instruction sets that were compiled and that this processor runs, best first; ends with isa == nullptr.
const CpuOps* cpu_ops_available();

}  // namespace dcfast
#endif
