/**
 * The first process of the Linux guest: a shell script for busybox. What it does after mounting is named on the kernel command
 * line as `mkvm.run=NAME`:
 *   check     the workload that checks itself, until "stop" comes over the console; then a report and power-off
 *   shell     an interactive shell on the console, power-off when it ends
 *   poweroff  says that user space was reached and powers off (the default)
 */
export const init = `#!/bin/sh
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mount -t tmpfs tmp /tmp
echo "mkvm-guest: user space reached, Linux $(uname -r)"
run=poweroff
for word in $(cat /proc/cmdline); do
  case "$word" in mkvm.run=*) run="\${word#mkvm.run=}" ;; esac
done
case "$run" in
check) . /check.sh ;;
shell) setsid cttyhack sh ;;
poweroff) ;;
*) echo "mkvm-guest: no workload called $run" ;;
esac
sync
poweroff -f
`;

/**
 * The workload. Commands come over the console: "mark" forgets the kernel log so far, "stop" ends. Each round: a counter, a running checksum of all rounds, a line appended to a file in memory whose MD5 is taken
 * every eighth round, time and timer interrupts as the guest counts them, and a wait for the timer. The same rules stand in
 * check-workload.ts, which predicts every line.
 */
export const checkScript = `
stty -echo 2>/dev/null
dmesg -c > /dev/null
: > /tmp/rounds
n=0
sum=7
command=
while [ "$command" != stop ]; do
  n=$((n + 1))
  sum=$(((sum * 31 + n) % 1000000007))
  echo "$n $sum" >> /tmp/rounds
  digest=-
  if [ $((n % 8)) = 0 ]; then
    digest=$(md5sum < /tmp/rounds)
    digest=\${digest%% *}
  fi
  read -r up rest < /proc/uptime
  while read -r label count rest; do
    [ "$label" = LOC: ] && break
  done < /proc/interrupts
  echo "mkvm-check n=$n sum=$sum up=$up ticks=$count md5=$digest"
  command=
  read -r -t 0.1 command
  [ "$command" = mark ] && dmesg -c > /dev/null && echo "mkvm-check-mark n=$n"
done
dmesg > /tmp/log
while read -r line; do echo "mkvm-log $line"; done < /tmp/log
echo "mkvm-check-end n=$n sum=$sum log=$(wc -l < /tmp/log)"
`;
