"""Tensor operations, one family a file. Importing this package registers all of them."""

from flambeau.compiler.dialects.graph import attention as attention
from flambeau.compiler.dialects.graph import blocked_convolution as blocked_convolution
from flambeau.compiler.dialects.graph import comparison_logic as comparison_logic
from flambeau.compiler.dialects.graph import composites_activation as composites_activation
from flambeau.compiler.dialects.graph import composites_nn as composites_nn
from flambeau.compiler.dialects.graph import composites_norm as composites_norm
from flambeau.compiler.dialects.graph import constants as constants
from flambeau.compiler.dialects.graph import contraction as contraction
from flambeau.compiler.dialects.graph import convolution as convolution
from flambeau.compiler.dialects.graph import expanded_depthwise as expanded_depthwise
from flambeau.compiler.dialects.graph import indexing as indexing
from flambeau.compiler.dialects.graph import optimization_barrier as optimization_barrier
from flambeau.compiler.dialects.graph import overlap_add as overlap_add
from flambeau.compiler.dialects.graph import packing as packing
from flambeau.compiler.dialects.graph import pointwise_arithmetic as pointwise_arithmetic
from flambeau.compiler.dialects.graph import pointwise_math as pointwise_math
from flambeau.compiler.dialects.graph import random_bits as random_bits
from flambeau.compiler.dialects.graph import reduce_window as reduce_window
from flambeau.compiler.dialects.graph import reduction as reduction
from flambeau.compiler.dialects.graph import scan as scan
from flambeau.compiler.dialects.graph import shape as shape
from flambeau.compiler.dialects.graph import sorting as sorting
from flambeau.compiler.dialects.graph import special as special
from flambeau.compiler.dialects.graph import winograd as winograd
