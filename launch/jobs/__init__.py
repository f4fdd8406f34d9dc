"""Work that is done elsewhere: jobs, the executors that run them, and what a launch writes down."""
