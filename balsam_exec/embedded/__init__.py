"""A deployment of one's own: service, local site and agent, for one user on one machine, persistent or temporary.

Importing this is cheap: the supervisor does, and it should stay small.
"""

from balsam_exec.embedded.deployment import Deployment, DeploymentFailed

__all__ = ["Deployment", "DeploymentFailed"]
