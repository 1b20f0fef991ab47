from .scheduling_flow_match_sde import FlowMatchSDEScheduler

__all__ = ["FlowMatchSDEScheduler"]
