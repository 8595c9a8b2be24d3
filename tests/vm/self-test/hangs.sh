# Never ends.
sleep 1000000
