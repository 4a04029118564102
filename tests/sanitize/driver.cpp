// What the parallel regions of the ops do, for the thread sanitizer: those of k-means on several shapes, and a block of
// a network, both ways; and the same result on any number of threads. Built and run by `make sanitize`; exits with 1 if
// a result differs.
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <random>
#include <vector>

#include "dcfast/core.h"

namespace ops = dcfast::baseline;

namespace {

struct Shape {
  int64_t n, d, k;
  bool lattice;  // ties everywhere, so that every row is rechecked
};

// Few columns and many, one centroid and many, fewer rows than a block and several blocks.
const Shape kShapes[] = {{1, 1, 1, false},      {700, 3, 40, false},  {700, 16, 40, true}, {900, 24, 70, false},
                         {2500, 40, 130, true}, {300, 513, 9, false}, {3000, 2, 5, true},  {1200, 70, 400, false}};

template <class T>
constexpr int kType = sizeof(T) == 4 ? DCFAST_FLOAT32 : DCFAST_FLOAT64;

void check(int status) {
  if (status == DCFAST_OK) return;
  printf("status %d\n", status);
  exit(1);
}

// Bytes at a multiple of 64, as the ops ask for.
class Workspace {
 public:
  explicit Workspace(int64_t bytes) : bytes_(aligned_alloc(64, size_t(bytes + 63) / 64 * 64)) {}
  ~Workspace() { free(bytes_); }
  Workspace(const Workspace&) = delete;
  void* get() const { return bytes_; }

 private:
  void* bytes_;
};

// Everything that is computed from one shape, as integers.
typedef std::vector<int64_t> Results;

void append(Results* results, const void* data, int64_t bytes) {
  const size_t before = results->size();
  results->resize(before + size_t(bytes + 7) / 8, 0);
  memcpy(results->data() + before, data, size_t(bytes));
}

template <class V>
void append(Results* results, const V& values) {
  append(results, values.data(), int64_t(values.size() * sizeof(values[0])));
}

template <class T>
std::vector<T> numbers(int64_t count, bool lattice, int seed) {
  std::mt19937 generator{unsigned(seed)};
  std::normal_distribution<double> normal;
  std::vector<T> values(size_t(count), T(0));
  for (T& value : values) value = T(lattice ? round(normal(generator)) : normal(generator));
  return values;
}

template <class T>
void assign(const std::vector<T>& x, const Shape& s, const std::vector<T>& c, const std::vector<T>* previous,
            const std::vector<int64_t>* before, std::vector<float>* bounds, int n_threads,
            std::vector<int64_t>* labels) {
  int64_t workspace_bytes, scratch_bytes, counts[2] = {};
  const void* old = previous != nullptr ? previous->data() : nullptr;
  check(ops::assign_workspace(kType<T>, s.k, s.d, previous != nullptr, before != nullptr, &workspace_bytes));
  check(ops::assign_scratch(kType<T>, s.k, s.d, &scratch_bytes));
  Workspace workspace(workspace_bytes), scratch(scratch_bytes * n_threads);
  check(ops::assign_prepare(kType<T>, c.data(), s.k, s.d, old, before != nullptr, workspace.get(), n_threads));
  check(ops::assign(kType<T>, x.data(), s.d, s.n, s.d, c.data(), s.k, old, workspace.get(), scratch.get(),
                    before != nullptr ? before->data() : nullptr, bounds != nullptr ? bounds->data() : nullptr,
                    labels->data(), counts, n_threads));
}

template <class T>
void sums_and_means(const std::vector<T>& x, const Shape& s, const std::vector<int64_t>& labels,
                    const std::vector<int64_t>& moved, const std::vector<T>& c, int n_threads, Results* results) {
  constexpr int64_t kWords = 3;
  const int64_t unit = -90;  // below the last place of every number here
  std::vector<double> scale(size_t(s.d), ldexp(1.0, int(-unit)));
  std::vector<int64_t> low(size_t(s.d), unit), words(size_t(s.k * kWords * s.d), 0), counts(size_t(s.k), 0);
  // Copies of the words where there are too few columns to share.
  const int64_t copies = s.d < 32 ? n_threads : 1;
  std::vector<int64_t> partial(size_t((copies - 1) * s.k * kWords * s.d), 0), partial_counts(size_t(copies * s.k), 0);
  const int64_t* previous = nullptr;
  for (const std::vector<int64_t>* now : {&labels, &moved}) {
    check(ops::accumulate(kType<T>, x.data(), s.d, s.n, s.d, now->data(), previous, s.k, nullptr, scale.data(), kWords,
                          words.data(), counts.data(), partial.data(), partial_counts.data(), copies, n_threads));
    previous = now->data();
  }
  std::vector<double> total(counts.begin(), counts.end());
  std::vector<T> means(size_t(s.k * s.d), T(0));
  check(ops::means(kType<T>, words.data(), s.k, kWords, s.d, low.data(), total.data(), c.data(), means.data(),
                   n_threads));
  append(results, words);
  append(results, counts);
  append(results, means);
}

template <class T>
void column_range(const std::vector<T>& x, const Shape& s, int n_threads, Results* results) {
  std::vector<double> smallest(size_t(n_threads * s.d), INFINITY), largest(size_t(n_threads * s.d), 0.0);
  check(ops::column_range(kType<T>, x.data(), s.d, s.n, s.d, nullptr, smallest.data(), largest.data(), n_threads,
                          n_threads));
  for (int64_t i = n_threads * s.d - 1; i >= s.d; --i) {
    smallest[size_t(i - s.d)] = fmin(smallest[size_t(i - s.d)], smallest[size_t(i)]);
    largest[size_t(i - s.d)] = fmax(largest[size_t(i - s.d)], largest[size_t(i)]);
  }
  append(results, smallest.data(), 8 * s.d);
  append(results, largest.data(), 8 * s.d);
}

template <class T>
void inertia(const std::vector<T>& x, const Shape& s, const std::vector<T>& c, const std::vector<int64_t>& labels,
             int n_threads, Results* results) {
  std::vector<double> distances(size_t(s.n), 0.0);
  std::vector<int64_t> words(size_t(80 * n_threads), 0);
  double total = 0.0;
  check(ops::point_distances(kType<T>, x.data(), s.d, s.n, s.d, c.data(), s.k, labels.data(), nullptr, distances.data(),
                             n_threads));
  check(ops::exact_sum_add(distances.data(), s.n, words.data(), n_threads));
  check(ops::exact_sum_round(words.data(), n_threads, &total));
  append(results, &total, 8);
}

// All of that once more from the elements that are not near 0, and the potentials of k-means++.
template <class T>
void csr(const std::vector<T>& x, const Shape& s, const std::vector<T>& c, int n_threads, Results* results) {
  constexpr int64_t kWords = 3, kCandidates = 3, kWidth = 4;
  std::vector<int64_t> indptr = {0}, candidate_indptr = {0}, candidate_indices;
  std::vector<int32_t> indices;
  std::vector<T> values, candidate_values;
  std::vector<double> columns(size_t(s.d * kWidth), 0.0), squares(size_t(kWidth), 0.0);
  for (int64_t row = 0; row < s.n; ++row) {
    for (int64_t i = 0; i < s.d; ++i) {
      const T value = x[size_t(row * s.d + i)];
      if (value < T(1)) continue;
      indices.push_back(int32_t(i));
      values.push_back(value);
      if (row >= kCandidates) continue;
      candidate_indices.push_back(i);
      candidate_values.push_back(value);
      columns[size_t(i * kWidth + row)] = double(value);
      squares[size_t(row)] += double(value) * double(value);
    }
    indptr.push_back(int64_t(values.size()));
    if (row < kCandidates) candidate_indptr.push_back(int64_t(values.size()));
  }
  const int64_t candidates = int64_t(candidate_indptr.size()) - 1;
  int64_t bytes[2], rechecked = 0;
  check(ops::csr_assign_workspace(kType<T>, s.k, s.d, bytes));
  Workspace workspace(bytes[0]), scratch(bytes[1] * n_threads);
  memset(scratch.get(), 0, size_t(bytes[1] * n_threads));
  std::vector<int64_t> labels(size_t(s.n), 0), none(size_t(s.n), -1), order;
  for (int64_t row = 0; row < s.n; ++row) order.push_back(row);
  check(ops::csr_assign_prepare(kType<T>, c.data(), s.k, s.d, workspace.get(), n_threads));
  check(ops::csr_assign(kType<T>, false, indptr.data(), indices.data(), values.data(), s.n, s.d, c.data(), s.k,
                        workspace.get(), scratch.get(), labels.data(), &rechecked, n_threads));
  const int64_t unit = -90;
  std::vector<double> scale(size_t(s.d), ldexp(1.0, int(-unit)));
  std::vector<int64_t> words(size_t(s.k * kWords * s.d), 0), counts(size_t(s.k), 0);
  check(ops::csr_accumulate(kType<T>, false, indptr.data(), indices.data(), values.data(), s.n, s.d, labels.data(),
                            none.data(), s.k, nullptr, scale.data(), kWords, words.data(), counts.data(), n_threads));
  std::vector<double> smallest(size_t(n_threads * s.d), INFINITY), largest(size_t(n_threads * s.d), 0.0);
  check(ops::csr_column_range(kType<T>, false, indptr.data(), indices.data(), values.data(), s.n, s.d, nullptr,
                              smallest.data(), largest.data(), n_threads));
  std::vector<double> distances(size_t(s.n), 0.0), closer(size_t(candidates * s.n), 0.0);
  std::vector<T> dense(size_t(n_threads * 16384), T(0));
  check(ops::csr_point_distances(kType<T>, false, indptr.data(), indices.data(), values.data(), order.data(), s.n, s.d,
                                 c.data(), s.k, labels.data(), nullptr, dense.data(), distances.data(), n_threads));
  check(ops::csr_closer(kType<T>, false, indptr.data(), indices.data(), values.data(), s.n, s.d,
                        candidate_indptr.data(), candidate_indices.data(), candidate_values.data(), candidates, kWidth,
                        columns.data(), squares.data(), nullptr, distances.data(), closer.data(), s.n, n_threads));
  append(results, labels);
  append(results, &rechecked, 8);
  append(results, words);
  append(results, counts);
  append(results, distances);
  append(results, closer);
}

template <class T>
void kmeans_plusplus(const std::vector<T>& x, const Shape& s, bool cached, int n_threads, Results* results) {
  constexpr int64_t kTrials = 5;
  std::mt19937 generator{7};
  std::uniform_real_distribution<double> draw;
  std::vector<double> uniform(size_t(s.k * kTrials), 0.0);
  for (double& value : uniform) value = draw(generator);
  int64_t bytes;
  check(ops::kmeans_plusplus_workspace(kType<T>, s.n, s.d, kTrials, cached, n_threads, &bytes));
  Workspace workspace(bytes);
  std::vector<int64_t> chosen(size_t(s.k), 0);
  check(ops::kmeans_plusplus(kType<T>, x.data(), s.d, s.n, s.d, nullptr, kTrials, cached, s.n / 2, uniform.data(),
                             s.k - 1, workspace.get(), chosen.data(), n_threads));
  append(results, chosen);
}

constexpr int64_t kMost = 40;

// The rows as problems of 1 to kMost rows.
std::vector<int64_t> problems_of(const Shape& s) {
  std::vector<int64_t> offsets = {0};
  for (int64_t size = 1; offsets.back() < s.n; size = size % kMost + 1) {
    offsets.push_back(offsets.back() + size < s.n ? offsets.back() + size : s.n);
  }
  return offsets;
}

// A row of each problem is drawn with what k-means++ draws after it.
template <class T>
void batched_starts(const std::vector<T>& x, const Shape& s, int n_threads, Results* results) {
  constexpr int64_t kTrials = 3, kSteps = 4, kDrawn = kTrials * kSteps;
  const std::vector<int64_t> offsets = problems_of(s);
  const int64_t problems = int64_t(offsets.size()) - 1;
  std::vector<int64_t> seeds(size_t(problems), 5), first(size_t(problems), 0), chosen(size_t(problems * kSteps), 0);
  std::vector<double> room(size_t(n_threads * 2 * kMost), 0.0), uniform(size_t(problems * kDrawn), 0.0);
  check(ops::draw_rows(seeds.data(), offsets.data(), problems, nullptr, 1, kDrawn, 1, room.data(), kMost, first.data(),
                       uniform.data(), n_threads));
  int64_t bytes;
  check(ops::kmeans_plusplus_workspace(kType<T>, kMost, s.d, kTrials, true, 1, &bytes));
  Workspace workspace(bytes * n_threads);
  check(ops::kmeans_plusplus_batch(kType<T>, x.data(), s.d, offsets.data(), problems, s.d, nullptr, kTrials,
                                   first.data(), uniform.data(), kSteps, workspace.get(), bytes, chosen.data(),
                                   n_threads));
  append(results, first);
  append(results, uniform);
  append(results, chosen);
}

// Some problems have fewer distinct rows than clusters.
template <class T>
void lloyd(const std::vector<T>& x, const Shape& s, int n_threads, Results* results) {
  constexpr int64_t kWords = 3, kClusters = 3;
  const std::vector<int64_t> offsets = problems_of(s);
  const int64_t problems = int64_t(offsets.size()) - 1, unit = -90;
  std::vector<int64_t> low(size_t(s.d), unit), labels(size_t(s.n), -1), seed(size_t(problems), 3);
  std::vector<int64_t> n_iter(size_t(problems), 0), status(size_t(problems), DCFAST_LLOYD_RUNNING);
  std::vector<double> scale(size_t(s.d), ldexp(1.0, int(-unit))), tol(size_t(problems), 1e-3);
  std::vector<double> inertia(size_t(problems), 0.0);
  std::vector<T> centroids = numbers<T>(problems * kClusters * s.d, s.lattice, 3);
  int64_t bytes;
  check(ops::lloyd_workspace(kType<T>, kMost, s.d, kClusters, kWords, kWords, false, 1, &bytes));
  Workspace workspace(bytes * n_threads);
  for (int call = 0; call < 2; ++call) {
    check(ops::lloyd(kType<T>, x.data(), s.d, offsets.data(), problems, s.d, kClusters, nullptr, low.data(),
                     scale.data(), kWords, low.data(), scale.data(), kWords, 6, 3, tol.data(), DCFAST_EMPTY_SPLIT,
                     seed.data(), workspace.get(), bytes, centroids.data(), labels.data(), inertia.data(),
                     n_iter.data(), status.data(), n_threads, 1));
  }
  append(results, centroids);
  append(results, labels);
  append(results, inertia);
}

// Half of the rows, by all threads together.
template <class T>
void bisect(const std::vector<T>& x, const Shape& s, int n_threads, Results* results) {
  constexpr int64_t kWords = 3;
  const int64_t m = (s.n + 1) / 2, unit = -90;
  std::vector<int64_t> rows, low(size_t(s.d), unit), labels(size_t(m), -1), order(size_t(m), 0), sizes(2, 0);
  for (int64_t i = 0; i < m; ++i) rows.push_back(2 * i);
  std::vector<double> scale(size_t(s.d), ldexp(1.0, int(-unit))), weight(size_t(s.n), 0.75), inertias(2, 0.0);
  std::vector<T> centroids = numbers<T>(2 * s.d, s.lattice, 3);
  int64_t bytes, n_iter = 0, status = DCFAST_LLOYD_RUNNING;
  double inertia = 0.0;
  check(ops::bisect_workspace(kType<T>, m, s.d, kWords, true, n_threads, &bytes));
  Workspace workspace(bytes);
  while (status == DCFAST_LLOYD_RUNNING) {
    check(ops::bisect(kType<T>, x.data(), s.d, rows.data(), m, s.d, weight.data(), low.data(), scale.data(), kWords, 6,
                      4, 0.0, workspace.get(), centroids.data(), labels.data(), &n_iter, &status, order.data(),
                      sizes.data(), &inertia, inertias.data(), n_threads));
  }
  append(results, centroids);
  append(results, order);
  append(results, sizes);
  append(results, &inertia, 8);
  append(results, inertias);
}

// A batch with weights, and the next.
template <class T>
void minibatch_step(const std::vector<T>& x, const Shape& s, std::vector<T> c, int n_threads, Results* results) {
  constexpr int64_t kWords = 3;
  const int64_t unit = -90;
  std::vector<int64_t> low(size_t(s.d), unit);
  std::vector<double> scale(size_t(s.d), ldexp(1.0, int(-unit))), weight(size_t(s.n), 0.75), seen(size_t(s.k), 1.0);
  int64_t bytes;
  check(ops::minibatch_step_workspace(kType<T>, s.n, s.d, s.k, kWords, n_threads, &bytes));
  Workspace workspace(bytes);
  for (int batch = 0; batch < 2; ++batch) {
    double inertia = 0.0;
    check(ops::minibatch_step(kType<T>, x.data(), s.d, s.n, s.d, batch == 0 ? weight.data() : nullptr, low.data(),
                              scale.data(), kWords, workspace.get(), c.data(), seen.data(), s.k, &inertia, n_threads));
    append(results, &inertia, 8);
  }
  append(results, c);
  append(results, seen);
}

template <class T>
Results everything(const Shape& s, int n_threads) {
  Results results;
  const std::vector<T> x = numbers<T>(s.n * s.d, s.lattice, 1), c = numbers<T>(s.k * s.d, s.lattice, 2);
  std::vector<T> next = c;
  for (int64_t i = 0; i < s.d * (s.k / 4); ++i) next[size_t(i)] *= T(0.5);
  std::vector<int64_t> labels(size_t(s.n), 0), moved(size_t(s.n), 0);
  std::vector<float> bounds(size_t(s.n * 8), 0.0f);  // at most 8 groups
  assign<T>(x, s, c, nullptr, nullptr, nullptr, n_threads, &labels);
  for (int step = 0; step < 2; ++step) assign<T>(x, s, c, &c, &labels, &bounds, n_threads, &moved);
  assign<T>(x, s, next, &c, &labels, &bounds, n_threads, &moved);
  append(&results, labels);
  append(&results, moved);
  column_range(x, s, n_threads, &results);
  sums_and_means(x, s, labels, moved, c, n_threads, &results);
  inertia(x, s, c, labels, n_threads, &results);
  csr(x, s, c, n_threads, &results);
  for (bool cached : {false, true}) kmeans_plusplus(x, s, cached, n_threads, &results);
  batched_starts(x, s, n_threads, &results);
  lloyd(x, s, n_threads, &results);
  bisect(x, s, n_threads, &results);
  minibatch_step(x, s, c, n_threads, &results);
  return results;
}

// A convolution, and normalisation, ReLU and pooling of 3 x 3 windows two apart.
template <class T>
Results block(int n_threads) {
  constexpr int64_t kImages = 5, kIn = 9, kOut = 21, kHeight = 14, kWidth = 11, kPooled = 6 * 5, kChunk = 6;
  Results results;
  const dcfast_winograd_sizes conv = {kImages, kIn, kOut, kHeight, kWidth, kChunk};
  const std::vector<T> x = numbers<T>(kImages * kHeight * kWidth * kIn, false, 1),
                       weight = numbers<T>(kOut * kIn * 9, false, 2),
                       grad = numbers<T>(kImages * kPooled * kOut, false, 3);
  int64_t plan[4];
  check(ops::winograd_conv2d_plan(kType<T>, &conv, plan));
  Workspace filters(plan[1] * int64_t(sizeof(T))), scratch(plan[2] * int64_t(sizeof(T)) * n_threads);
  std::vector<T> out(size_t(kImages * kHeight * kWidth * kOut), T(0)), totals(size_t(plan[3]), T(0)),
      by_weight = weight;
  check(ops::winograd_conv2d_filters(kType<T>, &conv, weight.data(), filters.get(), n_threads));
  check(ops::winograd_conv2d(kType<T>, &conv, x.data(), filters.get(), nullptr, scratch.get(), out.data(), 0, plan[0],
                             n_threads));
  append(&results, out);

  const dcfast_pool_sizes pool = {kImages, kOut, kHeight, kWidth, 3, 2, 6, 5, 1, 4};
  const int64_t rows = ((2 * pool.band + 1) * kWidth * kOut + 15) / 16 * 16;
  std::vector<T> band(size_t(rows * n_threads), T(0)), pooled = grad, by_x = out;
  const std::vector<T> ones(size_t(3 * kOut), T(1));
  std::vector<uint8_t> taken(grad.size(), 0);
  std::vector<double> partial(size_t(kImages * 2 * kOut), 0.0), sums(size_t(2 * kOut), 0.0);
  check(ops::batch_moments(kType<T>, &pool, out.data(), ones.data(), band.data(), partial.data(), sums.data(), 0,
                           kImages, n_threads));
  check(ops::batch_norm_relu_pool(kType<T>, &pool, out.data(), ones.data(), ones.data(), band.data(), pooled.data(),
                                  taken.data(), 0, kImages, n_threads));
  check(ops::batch_norm_relu_pool_sums(kType<T>, &pool, grad.data(), taken.data(), out.data(), ones.data(), band.data(),
                                       partial.data(), sums.data(), 0, kImages, n_threads));
  check(ops::batch_norm_relu_pool_backward(kType<T>, &pool, grad.data(), taken.data(), out.data(), ones.data(),
                                           ones.data(), band.data(), by_x.data(), 0, kImages, n_threads));
  check(ops::winograd_conv2d_products(kType<T>, &conv, x.data(), by_x.data(), scratch.get(), totals.data(), 0, plan[0],
                                      n_threads));
  check(ops::winograd_conv2d_weight(kType<T>, &conv, totals.data(), by_weight.data(), n_threads));
  append(&results, pooled);
  append(&results, sums);
  append(&results, by_x);
  append(&results, by_weight);
  return results;
}

template <class Work>
bool same_on_any_number_of_threads(const char* what, const Work& work) {
  const Results expected = work(1);
  bool same = true;
  for (int n_threads : {2, 3, 8}) {
    if (work(n_threads) == expected) continue;
    printf("%d threads: other results of %s\n", n_threads, what);
    same = false;
  }
  return same;
}

}  // namespace

int main() {
  bool same = true;
  for (const Shape& s : kShapes) {
    char what[80];
    snprintf(what, sizeof what, "n=%ld d=%ld k=%ld", long(s.n), long(s.d), long(s.k));
    same = same_on_any_number_of_threads(what, [&](int threads) { return everything<float>(s, threads); }) && same;
    same = same_on_any_number_of_threads(what, [&](int threads) { return everything<double>(s, threads); }) && same;
  }
  same = same_on_any_number_of_threads("a block of float32", block<float>) && same;
  same = same_on_any_number_of_threads("a block of float64", block<double>) && same;
  printf(same ? "the same results on 1, 2, 3 and 8 threads\n" : "FAILED\n");
  return same ? 0 : 1;
}
