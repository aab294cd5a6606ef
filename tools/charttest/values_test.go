package charttest

import (
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
)

func env(o objects, name string) string {
	c := o.deployment.Spec.Template.Spec.Containers[0]
	i := slices.IndexFunc(c.Env, func(e corev1.EnvVar) bool { return e.Name == name })
	if i < 0 {
		return ""
	}
	return c.Env[i].Value
}

func TestValuesReachTheObjects(t *testing.T) {
	o := mustRender(t, "waypoint", `
nameOverride: way
image: {repository: registry.example/fairlead, digest: "sha256:`+strings.Repeat("a", 64)+`"}
imagePullSecrets: [{name: pull}]
istio: {namespace: mesh, revision: canary, network: net-1, clusterName: c1, trustDomain: td.example, meshID: m1, clusterDomain: k8s.example}
proxyConfig: {terminationDrainDuration: 20s, proxyMetadata: {EXIT_ON_ZERO_ACTIVE_CONNECTIONS: true}}
log: {level: debug, json: true}
serviceAccount: {create: false, name: mine}
autoscaling: {enabled: false}
replicas: 3
podDisruptionBudget: {enabled: false}
env: {SECRET_TTL: 12h}
podLabels: {team: edge, app.kubernetes.io/instance: other}
podAnnotations: {note: "1"}
nodeSelector: {kubernetes.io/arch: arm64}
tolerations: [{key: dedicated, operator: Exists}]
affinity: {podAntiAffinity: {requiredDuringSchedulingIgnoredDuringExecution: [{topologyKey: kubernetes.io/hostname}]}}
topologySpreadConstraints: [{maxSkew: 1, topologyKey: topology.kubernetes.io/zone, whenUnsatisfiable: ScheduleAnyway}]
priorityClassName: high
service: {annotations: {a: b}}
`)
	if o.account != nil || o.hpa != nil || o.pdb != nil || *o.deployment.Spec.Replicas != 3 {
		t.Errorf("objects that are switched off: %+v", o)
	}
	pod := o.deployment.Spec.Template
	c := pod.Spec.Containers[0]
	for _, x := range []struct{ what, got, want string }{
		{"name", o.deployment.Name + o.service.Name, "wayway"},
		{"image", c.Image, "registry.example/fairlead@sha256:" + strings.Repeat("a", 64)},
		{"pull secret", pod.Spec.ImagePullSecrets[0].Name, "pull"},
		{"account", pod.Spec.ServiceAccountName, "mine"},
		{"CA_ADDR", env(o, "CA_ADDR"), "istiod-canary.mesh.svc:15012"},
		{"PROXY_CONFIG", env(o, "PROXY_CONFIG"), `{"discoveryAddress":"istiod-canary.mesh.svc:15012","proxyMetadata":{"EXIT_ON_ZERO_ACTIVE_CONNECTIONS":true,"ISTIO_META_ENABLE_HBONE":"true"},"terminationDrainDuration":"20s"}`},
		{"proxyMetadata", env(o, "EXIT_ON_ZERO_ACTIVE_CONNECTIONS") + env(o, "ISTIO_META_ENABLE_HBONE"), "truetrue"},
		{"network", env(o, "ISTIO_META_NETWORK") + pod.Labels["topology.istio.io/network"], "net-1net-1"},
		{"cluster", env(o, "ISTIO_META_CLUSTER_ID"), "c1"},
		{"mesh", env(o, "ISTIO_META_MESH_ID") + env(o, "TRUST_DOMAIN"), "m1td.example"},
		{"owner", env(o, "ISTIO_META_OWNER"), "kubernetes://apis/apps/v1/namespaces/app/deployments/way"},
		{"env", env(o, "SECRET_TTL"), "12h"},
		{"args", strings.Join(c.Args, " "), "proxy waypoint --domain $(POD_NAMESPACE).svc.k8s.example --serviceCluster mine.$(POD_NAMESPACE) --proxyLogLevel debug --proxyComponentLogLevel misc:error --log_output_level default:info --log_as_json"},
		{"labels", pod.Labels["team"] + pod.Labels["app.kubernetes.io/instance"], "edgegate"},
		{"annotations", pod.Annotations["note"] + pod.Annotations["istio.io/rev"], "1canary"},
		{"placement", pod.Spec.NodeSelector["kubernetes.io/arch"] + pod.Spec.Tolerations[0].Key + pod.Spec.PriorityClassName, "arm64dedicatedhigh"},
		{"spread", pod.Spec.TopologySpreadConstraints[0].TopologyKey + pod.Spec.Affinity.PodAntiAffinity.RequiredDuringSchedulingIgnoredDuringExecution[0].TopologyKey, "topology.kubernetes.io/zonekubernetes.io/hostname"},
		{"service", o.service.Annotations["a"] + o.service.Annotations["networking.istio.io/traffic-distribution"], "bPreferClose"},
	} {
		if x.got != x.want {
			t.Errorf("%s: got %q, want %q", x.what, x.got, x.want)
		}
	}
}

func TestMinAvailableReplacesMaxUnavailable(t *testing.T) {
	o := mustRender(t, "egress", `podDisruptionBudget: {minAvailable: 50%}`)
	if o.pdb.Spec.MinAvailable.String() != "50%" || o.pdb.Spec.MaxUnavailable != nil {
		t.Errorf("%+v", o.pdb.Spec)
	}
	if o = mustRender(t, "egress", `podDisruptionBudget: {minAvailable: 0}`); o.pdb.Spec.MinAvailable == nil || o.pdb.Spec.MaxUnavailable != nil {
		t.Errorf("zero: %+v", o.pdb.Spec)
	}
}

func TestValuesThatCannotWorkAreRefused(t *testing.T) {
	for _, c := range []struct{ name, values, want string }{
		{"unknown role", "role: sidecar", "role"},
		{"misspelt key", "replica: 2", "replica"},
		{"misspelt nested key", "image: {repo: x}", "repo"},
		{"wrong type", "replicas: many", "replicas"},
		{"tag in digest", "image: {digest: latest}", "digest"},
		{"address without port", "istio: {discoveryAddress: istiod}", "discoveryAddress"},
		{"privileged target port", "service: {ports: [{name: web, port: 80, targetPort: 80}]}", "targetPort"},
		{"privileged port without target", "service: {ports: [{name: web, port: 80}]}", "service/ports/0"},
		{"bad port name", "service: {ports: [{name: Web_1, port: 8080}]}", "name"},
		{"more replicas at least than at most", "autoscaling: {minReplicas: 5, maxReplicas: 2}", "autoscaling.minReplicas"},
		{"account neither made nor named", "serviceAccount: {create: false}", "serviceAccount.name"},
	} {
		_, _, err := render(t, values(t, "ingress", c.values))
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}

func TestNotesSayHowIstiodFindsIt(t *testing.T) {
	for _, c := range []struct{ role, values, want string }{
		{"waypoint", "", "value: gate.app.svc.cluster.local"},
		{"ingress", "gateway: {name: public}", "Gateway app/public"},
		{"egress", "", "{istio: egressgateway}"},
	} {
		_, notes, err := render(t, values(t, c.role, c.values))
		if err != nil || !strings.Contains(notes, c.want) {
			t.Errorf("%s: %v\n%s", c.role, err, notes)
		}
	}
}
