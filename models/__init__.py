"""Models: AtomGraph -> energy of each atom. One file, one model, one configuration beside it."""

from eqnet.models.egennet import EGenNet, EGenNetConfig
from eqnet.models.equiformer_v2 import EquiformerV2, EquiformerV2Config
from eqnet.models.escn import ESCN, ESCNConfig
from eqnet.models.esen import ESEN, ESENConfig
from eqnet.models.local_frames import LocalFrames, LocalFramesConfig
from eqnet.models.mace import MACE, MACEConfig
from eqnet.models.nequip import NequIP, NequIPConfig
from eqnet.models.tdn import TDN, TDNConfig
from eqnet.models.tensornet import TensorNet, TensorNetConfig

# The names of the command line: the configuration and the model.
MODELS = {
    "mace": (MACEConfig, MACE),
    "nequip": (NequIPConfig, NequIP),
    "esen": (ESENConfig, ESEN),
    "escn": (ESCNConfig, ESCN),
    "equiformer_v2": (EquiformerV2Config, EquiformerV2),
    "tdn": (TDNConfig, TDN),
    "tensornet": (TensorNetConfig, TensorNet),
    "egennet": (EGenNetConfig, EGenNet),
    "local_frames": (LocalFramesConfig, LocalFrames),
}
