"""The table of rules by which a tensor's name tells its part. Add an architecture's names here.

A rule is a regular expression and a part. It applies to a name if it matches one whole component
of it (`self_attn` in `model.layers.3.self_attn.q_proj.weight`); the first rule that applies
decides, so exceptions stand above what they are excepted from. Letter case is ignored.
"""

from typing import Literal, get_args

LayerPart = Literal["attention", "mlp", "norm"]
EndPart = Literal["embeddings", "final_norm", "head"]
Part = LayerPart | EndPart

LAYER_PARTS: tuple[LayerPart, ...] = get_args(LayerPart)
"""The parts of one layer."""

END_PARTS: tuple[EndPart, ...] = get_args(EndPart)
"""The parts before the first layer and after the last one."""

PARTS: tuple[Part, ...] = (*LAYER_PARTS, *END_PARTS)

STACKS = r"(cross_attn_)?layers?|h|blocks?"
"""Components that hold the layers, one per number: the number right after the first of them is the
layer's. Other numbers count experts, or the parts of one layer."""

TOWERS = (
    r"(vision|visual|image|audio|speech|sound|mm|multi_modal)(_.+)?|embed_tokens_extend|embed_audio"
)
"""Components of what turns pictures and sound into inputs: all below them is "embeddings"."""

LAYER_RULES: tuple[tuple[str, LayerPart], ...] = (
    # DBRX: norm_attn_norm holds two norms and the attention between them.
    (r"(?!norm_attn_norm$).*norm.*|(pre_)?ln(_.+|\d*)", "norm"),
    # Learned scales of the residual stream act on its channels as the weight of a norm does.
    (r".*residual.*|layer_scal(ar|e).*", "norm"),
    # What names both halves of a layer, or sits in a half named after the other.
    (r"hc_(ffn|mlp).*|ffn_hc|cross_attn_mlp_gate", "mlp"),
    (r"((self|cross|encoder|linear|rel|multi_head)_?)?att(n|ention)?(_.+)?", "attention"),
    (r"hc_attn.*|cross_attn_attn_gate", "attention"),
    # A layer of one of these kinds may itself be called mixer, whose rule therefore comes later.
    (r".*moe.*|.*experts?.*|.*router.*|gate|shared_.*mlp", "mlp"),
    (r"mlps?(_.+)?|ffn?|feed_?forward.*|intermediate|output|(gate|up|down)_proj", "mlp"),
    (r"fc\d|fc_(in|out)|laurel|altup|per_layer_(input_gate|projection)", "mlp"),
    # Token mixers other than attention: state spaces, recurrences, short convolutions.
    (r"mixer|.*mamba.*|mlstm.*|temporal_block|(short_?)?conv", "attention"),
    (r"[qkvo]_proj", "attention"),
    # Zamba: what carries the shared attention block's output to the mamba block.
    (r"linear", "attention"),
)
"""Rules for what comes after the number of the layer."""

END_RULES: tuple[tuple[str, EndPart], ...] = (
    (r".*lm_head|(hc_)?head|cls|embed_out|unembed|lm_loss", "head"),
    (r"output(_layer|_projection)?|proj_out", "head"),
    # OPT of 350M: from the width of the layers to that of the embeddings, right before the head.
    (r"project_out", "head"),
    # LFM: the norm after the last layer has this name.
    (r"embedding_norm", "final_norm"),
    (r".*emb(ed.*)?|wte|wpe|w|project_in|positions?_.*", "embeddings"),
    (r"per_layer_(model_projection|projection_norm)|altup_.*|input_hidden_states_.*", "embeddings"),
    (r".*norm.*|ln_f|ln_out", "final_norm"),
)
"""Rules for names without a layer."""

WRITERS = (
    r"(o_proj|out_proj|dense|c_proj|wo|down_proj|dense_4h_to_h|fc2|fc_out|w2|output_linear)(_bias)?"
)
"""Components of the projections by which a layer writes to the residual stream."""

NORMS_AFTER_WRITERS = r"post_(feedforward|mlp|self_attn)_(layer)?norm"
"""Norms between such a projection and the residual stream, which undo a scale of the projection."""
