// A mixture of experts: a router sends each token to the experts that suit it, whose gated MLPs it passes, and adds up
// what comes back, weighted. Each of the two steps is one call for all experts, and its work is shared out as a whole:
// an expert may have many tokens or none.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <random>
#include <vector>

#include <gptq/grouped_gemm.hpp>
#include <gptq/packed.hpp>
#include <gptq/thread_pool.hpp>

namespace {

using gptq::index_t;
using q4 = gptq::format<gptq::symmetric, 4, 32>;
using weights = gptq::packed_view<q4>;
using products = std::vector<gptq::grouped_product<q4>>;

constexpr index_t hidden = 64, intermediate = 96;  // of a token, and within an expert
constexpr int experts = 16, top_k = 4;

struct expert {
  gptq::packed_matrix<q4> gate, up, down;
};

/// Each token's experts and their weights, which add up to one, from logits[tokens, experts].
void route(std::vector<float> const& logits, index_t tokens, std::int32_t* expert_ids, float* shares) {
  for (index_t t = 0; t < tokens; ++t) {
    float const* const of = logits.data() + t * experts;
    int order[experts];
    for (int e = 0; e < experts; ++e) order[e] = e;
    std::partial_sort(order, order + top_k, order + experts, [&](int a, int b) { return of[a] > of[b]; });
    float sum = 0.0F;
    for (int k = 0; k < top_k; ++k) sum += std::exp(of[order[k]] - of[order[0]]);
    for (int k = 0; k < top_k; ++k) {
      expert_ids[t * top_k + k] = order[k];
      shares[t * top_k + k] = std::exp(of[order[k]] - of[order[0]]) / sum;
    }
  }
}

/// All of some products, on all threads.
template <class... Steps>
void run(gptq::thread_pool& workers, products const& all, gptq::activations<gptq::precision::int8> const& a,
         Steps const&... steps) {
  auto const count = static_cast<index_t>(all.size());
  index_t const work = gptq::grouped_work(all.data(), count);
  workers(workers.threads(), [&](int thread) noexcept {
    gptq::grouped_gemm(all.data(), count, a, gptq::work_share(work, thread, workers.threads()), steps...);
  });
}

/// y[tokens, hidden] of x[tokens, hidden].
std::vector<float> mixture(std::vector<expert> const& mlp, std::vector<float> const& x,
                           std::vector<float> const& logits, index_t tokens, gptq::thread_pool& workers) {
  auto const n = static_cast<std::size_t>(tokens * top_k);  // entries: a token and one of its experts
  std::vector<std::int32_t> expert_ids(n), entries(n), token_ids(n), first(experts + 1);
  std::vector<float> shares(n);
  route(logits, tokens, expert_ids.data(), shares.data());
  if (gptq::sort_by_expert(expert_ids.data(), tokens * top_k, experts, entries.data(), first.data()) !=
      gptq::fault::none) {
    std::abort();  // a router of this program does not do that
  }
  for (std::size_t i = 0; i < n; ++i) token_ids[i] = entries[i] / top_k;

  // gate and up of all experts, on x in the order of the entries. An engine allocates its memory once.
  weights const one = mlp[0].gate.view(), back = mlp[0].down.view();
  std::vector<char> workspace(gptq::workspace_bytes(one.layout(), tokens * top_k));
  auto const a = gptq::prepare(one, gptq::gathered_input<float>{x.data(), hidden, token_ids.data()},
                               tokens * top_k, workspace.data(), {0, tokens * top_k});
  std::vector<float> gate(n * intermediate), up(gate.size()), out(n * hidden);
  products both, downs;
  for (int e = 0; e < experts; ++e) {
    gptq::token_range const its{first[static_cast<std::size_t>(e)], first[static_cast<std::size_t>(e) + 1]};
    auto const& [g, u, d] = mlp[static_cast<std::size_t>(e)];
    both.push_back({g.view(), its, {gate.data() + its.first * intermediate}});
    both.push_back({u.view(), its, {up.data() + its.first * intermediate}});
    downs.push_back({d.view(), its, {out.data() + its.first * hidden}});
  }
  run(workers, both, a);
  for (std::size_t i = 0; i < gate.size(); ++i) gate[i] = gate[i] / (1.0F + std::exp(-gate[i])) * up[i];

  // And back, each entry times its share.
  std::vector<char> more(gptq::workspace_bytes(back.layout(), tokens * top_k));
  auto const h = gptq::prepare(back, gate.data(), tokens * top_k, more.data());
  run(workers, downs, h, [&](float* v, index_t entry, index_t /*row*/, index_t count) noexcept {
    float const share = shares[static_cast<std::size_t>(entries[static_cast<std::size_t>(entry)])];
    for (index_t r = 0; r < count; ++r) v[r] *= share;
  });
  std::vector<float> y(static_cast<std::size_t>(tokens * hidden));
  for (std::size_t i = 0; i < n; ++i) {
    float* const to = y.data() + token_ids[i] * hidden;
    for (index_t r = 0; r < hidden; ++r) to[r] += out[i * hidden + static_cast<std::size_t>(r)];
  }
  return y;
}

/// One token and one of its experts at a time.
std::vector<float> one_by_one(std::vector<expert> const& mlp, std::vector<float> const& x,
                              std::vector<float> const& logits, index_t tokens) {
  std::vector<std::int32_t> expert_ids(static_cast<std::size_t>(tokens * top_k));
  std::vector<float> shares(expert_ids.size()), y(static_cast<std::size_t>(tokens * hidden));
  route(logits, tokens, expert_ids.data(), shares.data());
  for (int e = 0; e < experts; ++e) {  // in the order of experts, as sums are rounded
    for (std::size_t i = 0; i < expert_ids.size(); ++i) {
      if (expert_ids[i] != e) continue;
      auto const token = static_cast<index_t>(i) / top_k;
      auto const& [gate, up, down] = mlp[static_cast<std::size_t>(e)];
      float g[intermediate], u[intermediate], d[hidden];
      gptq::gemv(gate.view(), x.data() + token * hidden, g);
      gptq::gemv(up.view(), x.data() + token * hidden, u);
      for (index_t r = 0; r < intermediate; ++r) g[r] = g[r] / (1.0F + std::exp(-g[r])) * u[r];
      gptq::gemv(down.view(), g, d);
      for (index_t r = 0; r < hidden; ++r)
        y[static_cast<std::size_t>(token * hidden + r)] += shares[i] * d[r];
    }
  }
  return y;
}

gptq::packed_matrix<q4> some_weights(index_t out, index_t in, std::mt19937& random) {
  gptq::quantized_layer<q4> layer;
  layer.out = out;
  layer.in = in;
  std::uniform_int_distribution<int> code(q4::levels.min_code, q4::levels.max_code);
  for (index_t i = 0; i < out * in; ++i) layer.codes.push_back(static_cast<std::uint8_t>(code(random)));
  layer.scales.assign(static_cast<std::size_t>(out * layer.groups()), 0.03125F);
  return gptq::pack(layer);
}

}  // namespace

int main() {
  std::mt19937 random(6);
  std::normal_distribution<float> normal;
  std::vector<expert> mlp;
  for (int e = 0; e < experts; ++e) {
    mlp.push_back({some_weights(intermediate, hidden, random), some_weights(intermediate, hidden, random),
                   some_weights(hidden, intermediate, random)});
  }
  gptq::thread_pool workers(2);
  bool same = true;
  for (index_t const tokens : {1, 40}) {
    std::vector<float> x(static_cast<std::size_t>(tokens * hidden)),
        logits(static_cast<std::size_t>(tokens * experts));
    for (float& v : x) v = normal(random);
    for (float& v : logits) v = normal(random);
    auto const y = mixture(mlp, x, logits, tokens, workers);
    auto const expected = one_by_one(mlp, x, logits, tokens);
    float worst = 0.0F;  // a compiler may fuse the last sums of one and not of the other
    for (std::size_t i = 0; i < y.size(); ++i) worst = std::max(worst, std::abs(y[i] - expected[i]));
    std::printf("%td tokens to %d of %d experts each: y[0] %.4f, within %.1e of one by one\n", tokens, top_k,
                experts, static_cast<double>(y[0]), static_cast<double>(worst));
    same = same && worst < 1e-5F;
  }
  return same ? 0 : 1;
}
