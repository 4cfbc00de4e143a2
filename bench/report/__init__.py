"""The benchmark's report: one page of HTML with its tables and plots."""
