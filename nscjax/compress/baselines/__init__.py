"""The peers: other people's methods as they describe them, one file each, to be compared with.

Every file names its source and each departure from it. All of them send real frames, keep to `SideInfo.budget_bytes` by
their own rate knob, and pass the contract test of `nscjax.compress.METHODS`.
"""

from nscjax.compress.baselines.aq_sgd import aq_sgd
from nscjax.compress.baselines.c3_sl import c3_sl
from nscjax.compress.baselines.dct import dct
from nscjax.compress.baselines.ef21_top_k import ef21_top_k
from nscjax.compress.baselines.fedlite import fedlite
from nscjax.compress.baselines.fp16 import fp16
from nscjax.compress.baselines.power_quant import power_quant
from nscjax.compress.baselines.powersgd import powersgd
from nscjax.compress.baselines.rand_top_k import rand_top_k
from nscjax.compress.baselines.sl_acc import sl_acc
from nscjax.compress.baselines.sl_fac import sl_fac
from nscjax.compress.baselines.splitfc import splitfc
from nscjax.compress.baselines.top_k import top_k
from nscjax.compress.baselines.truncated_svd import truncated_svd
from nscjax.compress.baselines.uniform import uniform

__all__ = [
    "aq_sgd",
    "c3_sl",
    "dct",
    "ef21_top_k",
    "fedlite",
    "fp16",
    "power_quant",
    "powersgd",
    "rand_top_k",
    "sl_acc",
    "sl_fac",
    "splitfc",
    "top_k",
    "truncated_svd",
    "uniform",
]
