from .scheduling_flow_match_sde import FlowMatchSDEScheduler
from .scheduling_flow_match_ucgm import FlowMatchUCGMScheduler

__all__ = ["FlowMatchSDEScheduler", "FlowMatchUCGMScheduler"]
