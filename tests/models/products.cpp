// Eigen's product of matrices, for a build whose other files are not optimized: the linker takes of each
// template's instances the one that it meets first, so this file comes first among those of a test.
#include <Eigen/Core>

namespace test {

using row_major = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

template <class T>
void instantiate_products(T const& a, T const& b, T& y) {
  y.noalias() = a * b;
  y.noalias() += a * b.transpose();
  y.noalias() += a.transpose() * b;
}

template void instantiate_products(row_major const&, row_major const&, row_major&);
template void instantiate_products(Eigen::MatrixXf const&, Eigen::MatrixXf const&, Eigen::MatrixXf&);
template void instantiate_products(Eigen::MatrixXd const&, Eigen::MatrixXd const&, Eigen::MatrixXd&);

}  // namespace test
