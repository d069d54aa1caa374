"""What runs Expunge as a service: containers, or the same services as plain processes on one machine."""
