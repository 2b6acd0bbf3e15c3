"""What mixes the tokens of a layer: attention of several kinds, or a state instead of a cache.

Part of the words of :mod:`edgekit.architecture`, from where they are imported.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Norm:
    """A normalization over the last axis.

    ``kind`` "rms" is RMSNorm (arXiv 1910.07467, eq. 4), "layer" LayerNorm (arXiv 1607.06450).
    Without ``weight`` nothing is learned; ``unit_offset`` multiplies by ``1 + weight``.
    """

    module: str
    size: int
    eps: float
    kind: str = "rms"
    weight: bool = True
    bias: bool = False
    unit_offset: bool = False


@dataclass(frozen=True)
class Rope:
    """Rotary positions of the first ``2 * len(inv_freq)`` dimensions of a head.

    ``interleaved`` rotates neighbours (2i, 2i+1) instead of halves; cos and sin are multiplied by
    ``attention_factor``. Beyond ``original_length`` tokens the long frequencies apply (LongRoPE).
    """

    inv_freq: tuple[float, ...]
    attention_factor: float = 1.0
    interleaved: bool = False
    long_inv_freq: tuple[float, ...] = ()
    long_attention_factor: float = 1.0
    original_length: int = 0

    @property
    def dimensions(self) -> int:
        """Rotated dimensions of a head."""
        return 2 * len(self.inv_freq)


@dataclass(frozen=True)
class Temperature:
    """Queries grow with their position: ``1 + beta * log(1 + floor((p + offset) / floor))``."""

    beta: float
    floor: float
    offset: float


@dataclass(frozen=True)
class HeadExperts:
    """Experts of an attention (JetMoE, arXiv 2404.07413): queries and outputs of ``top_k`` of them.

    Each expert has one query head per key head. ``q`` and ``o`` of the attention are the matrices
    of all experts, [E * heads * D, H] and [H, E * heads * D]; gates are a softmax of the chosen.
    """

    router: str
    num_experts: int
    top_k: int


@dataclass(frozen=True)
class Attention:
    """Grouped-query attention; ``q``, ``k``, ``v``, ``o`` and ``gate`` name modules.

    ``q_norm`` and ``k_norm`` apply per head (``norms_heads``) or to the whole width.
    ``window`` is the number of positions a query sees, itself included (0: all); ``soft_cap`` c
    replaces scores s by c tanh(s / c) (0: none); ``sinks`` names a logit per head that takes
    probability and gives nothing; ``gate`` multiplies the output by a sigmoid; ``clip`` bounds
    queries, keys and values. Where ``v`` is ``k``, the keys before norm and rotation are the
    values, which ``v_norm`` normalizes per head.
    """

    q: str
    k: str
    v: str
    o: str
    num_heads: int
    num_key_value_heads: int
    head_dim: int
    scale: float
    qkv_bias: bool = False
    o_bias: bool = False
    q_norm: Norm | None = None
    k_norm: Norm | None = None
    norms_heads: bool = False
    norm_after_rope: bool = False
    rope: Rope | None = None
    window: int = 0
    soft_cap: float = 0.0
    sinks: str = ""
    gate: str = ""
    clip: float = 0.0
    temperature: Temperature | None = None
    experts: HeadExperts | None = None
    v_norm: Norm | None = None

    @property
    def cache_values(self) -> int:
        """Values that the cache keeps of one token."""
        return 2 * self.num_key_value_heads * self.head_dim


@dataclass(frozen=True)
class LatentAttention:
    """Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434, section 2.1).

    Queries come from ``q`` or, compressed, from ``q_a``, ``q_a_norm``, ``q_b``. The cache holds the
    normalized latent [kv_lora_rank], times ``latent_scale``, and the rotated shared key [rope_dim]
    of each token.
    """

    q: str
    q_a: str
    q_a_norm: Norm | None
    q_b: str
    kv_a: str
    kv_a_norm: Norm
    kv_b: str
    o: str
    num_heads: int
    q_lora_rank: int
    kv_lora_rank: int
    nope_dim: int
    rope_dim: int
    value_dim: int
    scale: float
    rope: Rope
    bias: bool = False
    latent_scale: float = 1.0

    @property
    def cache_values(self) -> int:
        """Values that the cache keeps of one token: the graphs store the latent twice."""
        return 2 * (self.kv_lora_rank + self.rope_dim)


@dataclass(frozen=True)
class ShortConv:
    """Gated short convolution (LFM2): ``output(c * conv(b * x))``, each channel by itself.

    ``input`` projects to b, c and x [3 H]; ``kernel`` names the module whose weight [length, H]
    has the current token's row last. The state holds the last ``length - 1`` products of b and x.
    """

    input: str
    kernel: str
    output: str
    size: int
    length: int
    bias: bool = False

    @property
    def state_values(self) -> int:
        """Values of the state of one sequence."""
        return (self.length - 1) * self.size


@dataclass(frozen=True)
class GatedDelta:
    """A gated delta rule (arXiv 2412.06464) after a short convolution of q, k and v.

    With unit q and k, a state S [heads, key_dim, value_dim] that fades by exp(g) learns that k
    means v: ``S += k (v - S^T k) sigmoid(b)``, and tells ``S^T q / sqrt(key_dim)``, which is
    normalized and gated with silu(z). g is ``-exp(decay) softplus(a + decay_bias)``. Every key head
    serves ``num_value_heads / num_key_heads`` heads.
    """

    q: str
    k: str
    v: str
    z: str
    a: str
    b: str
    kernel: str
    decay: str
    decay_bias: str
    norm: Norm
    output: str
    num_key_heads: int
    num_value_heads: int
    key_dim: int
    value_dim: int
    length: int  # of the convolution

    @property
    def key_size(self) -> int:
        """Width of queries and of keys."""
        return self.num_key_heads * self.key_dim

    @property
    def value_size(self) -> int:
        """Width of values and of the output."""
        return self.num_value_heads * self.value_dim

    @property
    def conv_size(self) -> int:
        """Channels of the convolution: queries, keys and values."""
        return 2 * self.key_size + self.value_size

    @property
    def state_values(self) -> int:
        """Values of the states of one sequence."""
        recurrent = self.num_value_heads * self.key_dim * self.value_dim
        return (self.length - 1) * self.conv_size + recurrent


@dataclass(frozen=True)
class SelectiveScan:
    """A selective state space (Mamba-2, arXiv 2405.21060) after a short convolution of x, B and C.

    A state S [heads, head_dim, state_size] fades by exp(-exp(decay) dt), takes in ``dt x B`` and
    tells ``S C + skip x``; dt is ``softplus(dt + decay_bias)`` within ``step_limits``. The result
    times silu(z) is normalized. ``groups`` of heads share B and C, as ``x`` projects them with x.
    """

    z: str
    x: str
    dt: str
    kernel: str
    decay: str
    decay_bias: str
    skip: str
    norm: Norm
    output: str
    num_heads: int
    head_dim: int
    groups: int
    state_size: int
    length: int  # of the convolution
    step_limits: tuple[float, float]
    conv_bias: bool = False
    bias: bool = False

    @property
    def size(self) -> int:
        """Width of x and of the output."""
        return self.num_heads * self.head_dim

    @property
    def group_size(self) -> int:
        """Width of B and of C."""
        return self.groups * self.state_size

    @property
    def conv_size(self) -> int:
        """Channels of the convolution: x, B and C."""
        return self.size + 2 * self.group_size

    @property
    def state_values(self) -> int:
        """Values of the states of one sequence."""
        recurrent = self.num_heads * self.head_dim * self.state_size
        return (self.length - 1) * self.conv_size + recurrent


Mixer = Attention | LatentAttention | ShortConv | GatedDelta | SelectiveScan
