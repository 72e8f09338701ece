"""Tensor operations, one family a file. Importing this package registers all of them."""

from flambeau.compiler.dialects.graph import contraction as contraction
from flambeau.compiler.dialects.graph import convolution as convolution
from flambeau.compiler.dialects.graph import random_bits as random_bits
from flambeau.compiler.dialects.graph import reduce_window as reduce_window
