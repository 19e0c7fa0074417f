i=0
while [ $i -lt 20 ]; do
  ls / >/dev/null
  i=$((i + 1))
done
