"""What goes wrong when inputs, processes and machines do: counted, with intervals, in reports/reliability/show.json."""
