# Says why, and fails.
echo "this is why"
exit 7
