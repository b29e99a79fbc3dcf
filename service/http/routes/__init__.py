"""One small function per endpoint."""
