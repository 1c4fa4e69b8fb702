"""What several measurements share: reports, timing, rivals, pictures, networks."""
