#!/bin/bash
# run.sh KIT: runs the cluster test in namespaces of its own. KIT is the folder of the cluster kit (scripts/min.sh);
# CLUSTER_HOME (default /var/tmp/cluster) holds its built programs. Needs root.
set -euo pipefail
here=$(dirname "$(readlink -f "$0")"); root=$(dirname "$(dirname "$here")")
kit=$(readlink -f "$1")
home=${CLUSTER_HOME:-/var/tmp/cluster}
for p in etcd kube-apiserver pilot-discovery kubectl; do
  [ -x "$home/bin/$p" ] || { echo "cluster: $home/bin/$p is missing: build the kit first"; exit 3; }
done
make -C "$root" build >/dev/null
run=$(mktemp -d); trap 'rm -rf "$run"' EXIT
(cd "$here/.." && go test -c -o "$run/cluster.test" ./cluster)
export KIT=$kit RUN=$run FAIRLEAD=$root/bin/fairlead
unshare --net --mount --pid --fork --mount-proc bash -euo pipefail -c '
  ip link set lo up
  for a in 11 12 20; do ip addr add 10.98.0.$a/32 dev lo; done
  cp /etc/hosts $RUN/hosts; echo "127.0.0.1 istiod.istio-system.svc" >> $RUN/hosts; mount --bind $RUN/hosts /etc/hosts
  bash $KIT/scripts/min.sh $RUN/k > $RUN/min.log 2>&1 || { tail -20 $RUN/min.log; exit 1; }
  mkdir -p /var/run/secrets /etc/istio; mount -t tmpfs none /var/run/secrets; mount -t tmpfs none /etc/istio
  mkdir -p /var/run/secrets/tokens /var/run/secrets/istio /etc/istio/pod
  cp $RUN/k/wp.jwt /var/run/secrets/tokens/istio-token; cp $RUN/k/root.pem /var/run/secrets/istio/root-cert.pem
  printf "gateway.networking.k8s.io/gateway-name=\"waypoint\"\ngateway.istio.io/managed=\"istio.io-mesh-controller\"\n" > /etc/istio/pod/labels; : > /etc/istio/pod/annotations
  cd $RUN && timeout 120 ./cluster.test -test.v -test.timeout 110s
'
