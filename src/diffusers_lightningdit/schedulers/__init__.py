from .scheduling_flow_match_adams_bashforth import FlowMatchAdamsBashforthScheduler
from .scheduling_flow_match_sde import FlowMatchSDEScheduler
from .scheduling_flow_match_ucgm import FlowMatchUCGMScheduler

__all__ = ["FlowMatchAdamsBashforthScheduler", "FlowMatchSDEScheduler", "FlowMatchUCGMScheduler"]
