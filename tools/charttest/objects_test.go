package charttest

import (
	"encoding/json"
	"slices"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/validation"
)

var roles = []string{"waypoint", "ingress", "egress"}

// objects are the rendered ones, nil if absent.
type objects struct {
	deployment *appsv1.Deployment
	service    *corev1.Service
	account    *corev1.ServiceAccount
	hpa        *autoscalingv2.HorizontalPodAutoscaler
	pdb        *policyv1.PodDisruptionBudget
}

func mustRender(t *testing.T, role, more string) objects {
	t.Helper()
	manifests, _, err := render(t, values(t, role, more))
	if err != nil {
		t.Fatal(err)
	}
	all, err := decode(manifests)
	if err != nil {
		t.Fatal(err)
	}
	var o objects
	for _, x := range all {
		switch x := x.(type) {
		case *appsv1.Deployment:
			o.deployment = x
		case *corev1.Service:
			o.service = x
		case *corev1.ServiceAccount:
			o.account = x
		case *autoscalingv2.HorizontalPodAutoscaler:
			o.hpa = x
		case *policyv1.PodDisruptionBudget:
			o.pdb = x
		default:
			t.Errorf("unexpected %T", x)
		}
		m := x.(metav1.Object) //nolint:errcheck // every API object is one
		if m.GetNamespace() != "app" {
			t.Errorf("%T in namespace %q", x, m.GetNamespace())
		}
		for k, v := range m.GetLabels() {
			if e := append(validation.IsQualifiedName(k), validation.IsValidLabelValue(v)...); len(e) > 0 {
				t.Errorf("%T: label %s=%s: %v", x, k, v, e)
			}
		}
	}
	if o.deployment == nil || o.service == nil {
		t.Fatal("no Deployment or no Service")
	}
	return o
}

func TestEveryRoleHasAllObjectsAndTheySelectThePods(t *testing.T) {
	for _, role := range roles {
		o := mustRender(t, role, "")
		if o.account == nil || o.hpa == nil || o.pdb == nil {
			t.Fatalf("%s: missing objects: %+v", role, o)
		}
		pods := labels.Set(o.deployment.Spec.Template.Labels)
		for what, sel := range map[string]map[string]string{
			"Deployment": o.deployment.Spec.Selector.MatchLabels, "Service": o.service.Spec.Selector, "PodDisruptionBudget": o.pdb.Spec.Selector.MatchLabels,
		} {
			if len(sel) == 0 || !labels.SelectorFromSet(sel).Matches(pods) {
				t.Errorf("%s: %s selects %v, pods have %v", role, what, sel, pods)
			}
		}
		if o.hpa.Spec.ScaleTargetRef.Name != o.deployment.Name || o.deployment.Spec.Replicas != nil {
			t.Errorf("%s: the autoscaler's target is %s; replicas %v", role, o.hpa.Spec.ScaleTargetRef.Name, o.deployment.Spec.Replicas)
		}
		if o.deployment.Spec.Template.Spec.ServiceAccountName != o.account.Name {
			t.Errorf("%s: service account %s", role, o.deployment.Spec.Template.Spec.ServiceAccountName)
		}
	}
}

func TestContainerHasNoRights(t *testing.T) {
	for _, role := range roles {
		pod := mustRender(t, role, "").deployment.Spec.Template.Spec
		for _, c := range pod.Containers {
			s := c.SecurityContext
			if *s.RunAsUser != 1337 || *s.RunAsGroup != 1337 || !*s.RunAsNonRoot || !*s.ReadOnlyRootFilesystem || *s.AllowPrivilegeEscalation || *s.Privileged {
				t.Errorf("%s: %+v", role, s)
			}
			if !slices.Equal(s.Capabilities.Drop, []corev1.Capability{"ALL"}) || len(s.Capabilities.Add) > 0 {
				t.Errorf("%s: capabilities %+v", role, s.Capabilities)
			}
			for _, p := range c.Ports {
				if p.ContainerPort < 1024 {
					t.Errorf("%s: port %d can't be bound without capabilities", role, p.ContainerPort)
				}
			}
		}
		if pod.SecurityContext.SeccompProfile.Type != corev1.SeccompProfileTypeRuntimeDefault || *pod.AutomountServiceAccountToken {
			t.Errorf("%s: seccomp or service account token", role)
		}
	}
}

func TestPodGetsWhatTheAgentReads(t *testing.T) {
	for _, role := range roles {
		pod := mustRender(t, role, "").deployment.Spec.Template
		c := pod.Spec.Containers[0]
		kind := map[string]string{"waypoint": "waypoint"}[role]
		if kind == "" {
			kind = "router"
		}
		if c.Name != "istio-proxy" || !slices.Equal(c.Args[:2], []string{"proxy", kind}) || c.Command != nil {
			t.Errorf("%s: container %s, %v", role, c.Name, c.Args)
		}
		env := map[string]corev1.EnvVar{}
		for _, e := range c.Env {
			if _, dup := env[e.Name]; dup {
				t.Errorf("%s: %s is set twice", role, e.Name)
			}
			env[e.Name] = e
		}
		for _, n := range []string{
			"ISTIO_META_SERVICE_ACCOUNT", "ISTIO_META_NODE_NAME", "PILOT_CERT_PROVIDER", "CA_ADDR", "POD_NAME", "POD_NAMESPACE", "INSTANCE_IP",
			"SERVICE_ACCOUNT", "HOST_IP", "ISTIO_CPU_LIMIT", "PROXY_CONFIG", "ISTIO_META_ENABLE_HBONE", "GOMEMLIMIT", "ISTIO_META_CLUSTER_ID",
			"ISTIO_META_INTERCEPTION_MODE", "ISTIO_META_WORKLOAD_NAME", "ISTIO_META_OWNER", "ISTIO_META_MESH_ID", "TRUST_DOMAIN",
		} {
			if e := env[n]; e.Value == "" && e.ValueFrom == nil {
				t.Errorf("%s: %s is not set", role, n)
			}
		}
		var pc map[string]any
		if err := json.Unmarshal([]byte(env["PROXY_CONFIG"].Value), &pc); err != nil || pc["discoveryAddress"] != "istiod.istio-system.svc:15012" {
			t.Errorf("%s: PROXY_CONFIG %v, %v", role, pc, err)
		}
		for _, p := range []*corev1.Probe{c.StartupProbe, c.ReadinessProbe} {
			if p.HTTPGet.Path != "/healthz/ready" || p.HTTPGet.Port.IntValue() != 15021 {
				t.Errorf("%s: probe %+v", role, p.HTTPGet)
			}
		}
		checkVolumes(t, role, &pod.Spec)
	}
}

func checkVolumes(t *testing.T, role string, pod *corev1.PodSpec) {
	t.Helper()
	at := map[string]corev1.VolumeSource{}
	for _, v := range pod.Volumes {
		i := slices.IndexFunc(pod.Containers[0].VolumeMounts, func(m corev1.VolumeMount) bool { return m.Name == v.Name })
		if i < 0 {
			t.Errorf("%s: volume %s is not mounted", role, v.Name)
			continue
		}
		at[pod.Containers[0].VolumeMounts[i].MountPath] = v.VolumeSource
	}
	if len(at) != len(pod.Containers[0].VolumeMounts) {
		t.Errorf("%s: a mount has no volume: %v", role, pod.Containers[0].VolumeMounts)
	}
	if cm := at["/var/run/secrets/istio"].ConfigMap; cm == nil || cm.Name != "istio-ca-root-cert" {
		t.Errorf("%s: root of istiod: %+v", role, at)
	}
	if p := at["/var/run/secrets/tokens"].Projected; p == nil || p.Sources[0].ServiceAccountToken.Audience != "istio-ca" || p.Sources[0].ServiceAccountToken.Path != "istio-token" {
		t.Errorf("%s: token: %+v", role, at)
	}
	d := at["/etc/istio/pod"].DownwardAPI
	if d == nil || len(d.Items) != 2 || d.Items[0].Path != "labels" || d.Items[1].Path != "annotations" {
		t.Errorf("%s: pod info: %+v", role, at)
	}
}

func TestIstiodFindsTheGatewayByLabels(t *testing.T) {
	const name, managed = "gateway.networking.k8s.io/gateway-name", "gateway.istio.io/managed"
	for _, c := range []struct {
		role, values         string
		name, managed, istio string
	}{
		{"waypoint", "", "gate", "istio.io-mesh-controller", ""},
		{"waypoint", "gateway: {name: ns-wide}", "ns-wide", "istio.io-mesh-controller", ""},
		{"ingress", "", "", "", "ingressgateway"},
		{"ingress", "gateway: {name: public, selector: edge}", "public", "istio.io-gateway-controller", "edge"},
		{"egress", "", "", "", "egressgateway"},
	} {
		l := mustRender(t, c.role, c.values).deployment.Spec.Template.Labels
		if l[name] != c.name || l[managed] != c.managed || l["istio"] != c.istio {
			t.Errorf("%s, %s: %v", c.role, c.values, l)
		}
	}
}

func TestServicePorts(t *testing.T) {
	for _, c := range []struct {
		role, values string
		kind         corev1.ServiceType
		want         map[int32]int // port: target port
	}{
		{"waypoint", "", corev1.ServiceTypeClusterIP, map[int32]int{15021: 15021, 15008: 15008}},
		{"ingress", "", corev1.ServiceTypeLoadBalancer, map[int32]int{15021: 15021, 80: 8080, 443: 8443}},
		{"egress", "", corev1.ServiceTypeClusterIP, map[int32]int{15021: 15021, 80: 8080, 443: 8443}},
		{
			"ingress", "service: {type: NodePort, ports: [{name: tcp-db, port: 5432}, {name: web, port: 80, targetPort: 9000, nodePort: 30080}]}",
			corev1.ServiceTypeNodePort, map[int32]int{15021: 15021, 5432: 5432, 80: 9000},
		},
	} {
		s := mustRender(t, c.role, c.values).service.Spec
		got := map[int32]int{}
		for _, p := range s.Ports {
			got[p.Port] = p.TargetPort.IntValue()
		}
		if s.Type != c.kind || len(got) != len(c.want) {
			t.Errorf("%s, %s: %s %v", c.role, c.values, s.Type, got)
		}
		for p, to := range c.want {
			if got[p] != to {
				t.Errorf("%s, %s: port %d goes to %d, want %d", c.role, c.values, p, got[p], to)
			}
		}
	}
}
