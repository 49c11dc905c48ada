// How far codes could still be improved.
#pragma once

#include <span>

#include <gptq/hessian.hpp>

namespace accuracy {

/// The loss 1/2 tr(D (H + damping) D') that no choice of codes can go below on average, whatever the
/// algorithm: for weights that are as likely anywhere as anywhere else, and for given scales.
///
/// With H + damping = R R' the values of a row lie on a lattice of K dimensions whose cells have the volume
/// V = det R * product of the scales. Of all cells of this volume a ball has the least mean squared distance
/// from its centre, K / (K + 2) r^2 with the radius r (Zador's bound; Conway, Sloane, "Sphere Packings,
/// Lattices and Groups", chapter 2). Codes are taken to have no ends: where weights are clipped, as many are
/// with 2 bits, the bound is far from what can be reached.
/// @param scales  [out, groups]
double least_loss(std::span<float const> scales, gptq::index_t out, gptq::index_t group_columns,
                  gptq::hessian const& h, double damping);

}  // namespace accuracy
