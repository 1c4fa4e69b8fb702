"""The processes of a job: who started them, who is alive, who is waited for."""
