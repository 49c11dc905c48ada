#!/usr/bin/env bash
# hosts.sh <mpiexec> <quantize_model> <model>: two network namespaces stand for hosts, with a rank each. They make the
# bytes that one rank makes, and what they exchange goes over the network between them. Exit status 77: not allowed here.
set -euo pipefail
mpiexec=$1 program=$2 model=$3
scratch=$(mktemp -d)
suffix=$$
clean() {
  for host in a b; do ip netns del "gptq-$host-$suffix" 2>/dev/null || true; done
  rm -rf "$scratch"
}
trap clean EXIT

for tool in ip unshare; do
  command -v $tool >/dev/null || { echo "skipped: there is no $tool"; exit 77; }
done
if ! { ip netns add "gptq-a-$suffix" && ip netns add "gptq-b-$suffix" &&
  ip link add va netns "gptq-a-$suffix" type veth peer name vb netns "gptq-b-$suffix" &&
  ip netns exec "gptq-a-$suffix" unshare --uts true; } 2>"$scratch/why"; then
  echo "skipped: network namespaces are not allowed here: $(head -1 "$scratch/why")"
  exit 77
fi
for host in a b; do
  [[ $host == a ]] && address=10.203.77.1 || address=10.203.77.2
  ip -n "gptq-$host-$suffix" addr add $address/24 dev v$host
  ip -n "gptq-$host-$suffix" link set lo up
  ip -n "gptq-$host-$suffix" link set v$host up
done
# What mpiexec starts its daemons with, in place of ssh: agent <address> <command>...
cat >"$scratch/agent" <<AGENT
#!/bin/sh
case \$1 in
  10.203.77.1) host=a ;;
  10.203.77.2) host=b ;;
  *) echo "no such host: \$1" >&2; exit 1 ;;
esac
shift
exec ip netns exec gptq-\$host-$suffix unshare --uts sh -c "hostname gptq-\$host; \$*"
AGENT
chmod +x "$scratch/agent"

options="--calibration $model/calibration.txt --window 64 --samples 6 --quality plain --group-size 32 --threads 1 --no-float-baseline
  --deterministic-reduction"
"$program" "$model" $options --output "$scratch/one" >/dev/null
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
ip netns exec "gptq-a-$suffix" unshare --uts sh -c "hostname gptq-a
  exec '$mpiexec' --mca plm_rsh_agent '$scratch/agent' --mca btl tcp,self --bind-to none --oversubscribe \
    --host 10.203.77.1:1,10.203.77.2:1 -n 2 \
    '$program' '$model' $(echo $options) --output '$scratch/two'" >"$scratch/printed"
grep -q 'rank 1 solves' "$scratch/printed"
cmp "$scratch/one/model.safetensors" "$scratch/two/model.safetensors"
# Three of four decoder layers' Hessians of 256 and 768 inputs alone are more than 4 MB.
sent=$(ip netns exec "gptq-a-$suffix" cat /sys/class/net/va/statistics/tx_bytes)
received=$(ip netns exec "gptq-a-$suffix" cat /sys/class/net/va/statistics/rx_bytes)
echo "between the hosts: $sent bytes to the second, $received bytes back"
((sent > 4000000))
