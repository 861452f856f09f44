"""What a monitoring system reads: counted from rows, shown in Prometheus's text format."""
