"""The site agent: on a login node, between the service and the site's batch scheduler."""
