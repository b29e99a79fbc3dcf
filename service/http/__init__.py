"""What faces a client: endpoints, bodies, headers, connections, the OpenAPI document."""
