#!/usr/bin/env bash
# Two hosts that are network namespaces of this machine: COMMAND... runs inside, and mpirun in it starts ranks on both.
#   two_hosts.sh FOLDER COMMAND...
# For that COMMAND gives it: --mca plm_rsh_agent FOLDER/agent --host 10.231.7.1:1,10.231.7.2:1.
# TCP between the ranks crosses a pair of virtual Ethernet devices. Needs user namespaces or root, no sshd. Everything
# is gone with the last process. Exit code 77 where namespaces are not allowed.
set -euo pipefail
folder=$1
shift

if [[ ${TWO_HOSTS_INSIDE:-} != yes ]]; then
  unshare -Urnmp --fork true 2>/dev/null || {
    printf 'skipped: this kernel does not let us make namespaces\n' >&2
    exit 77
  }
  TWO_HOSTS_INSIDE=yes exec unshare -Urnmp --fork --mount-proc --kill-child bash "${BASH_SOURCE[0]}" "$folder" "$@"
fi

mount -t tmpfs none /run
mkdir -p /run/netns
ip netns add a
ip netns add b
ip link add va netns a type veth peer name vb netns b
ip -n a addr add 10.231.7.1/24 dev va
ip -n b addr add 10.231.7.2/24 dev vb
for name in a b; do
  ip -n "$name" link set lo up
  ip -n "$name" link set "v$name" up
done
cat >"$folder/agent" <<'AGENT'
#!/usr/bin/env bash
# In place of ssh: agent HOST COMMAND...
host=$1
shift
case $host in
  10.231.7.1) name=a ;;
  10.231.7.2) name=b ;;
  *) exit 99 ;;
esac
exec ip netns exec "$name" unshare --uts bash -c 'hostname "node-$0"; eval "$1"' "$name" "$*"
AGENT
chmod +x "$folder/agent"
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 OMPI_MCA_orte_tmpdir_base="$folder"
status=0
ip netns exec a "$@" || status=$?
printf 'bytes over the wire: %s\n' "$(ip netns exec a cat /sys/class/net/va/statistics/tx_bytes)" >&2
exit "$status"
