# Ends the machine in order, but before the scenario is done.
poweroff -f
sleep 1000
