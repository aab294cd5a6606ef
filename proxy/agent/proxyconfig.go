package agent

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path"
	"strconv"
	"strings"
	"time"

	"sigs.k8s.io/yaml"
)

// defaultCluster is the service cluster that means "none given".
const defaultCluster = "istio-proxy"

// defaultProxyConfig is istio.mesh.v1alpha1.ProxyConfig with the values that
// istiod assumes.
func defaultProxyConfig() map[string]any {
	return map[string]any{
		"configPath": "./etc/istio/proxy", "binaryPath": "/usr/local/bin/envoy", "serviceCluster": defaultCluster,
		"drainDuration": "45s", "terminationDrainDuration": "5s", "proxyAdminPort": 15000.0, "statusPort": 15020.0,
		"controlPlaneAuthPolicy": "MUTUAL_TLS", "discoveryAddress": "istiod.istio-system.svc:15012", "statNameLength": 189.0,
	}
}

// proxyConfig merges, later ones winning: defaults, defaultConfig of a mounted
// mesh configuration, PROXY_CONFIG, and the pod's annotations.
func (p *parser) proxyConfig(c *Config) error {
	pc := defaultProxyConfig()
	if b, err := p.in.ReadFile(p.flags.meshConfig); err == nil {
		var mesh struct{ DefaultConfig map[string]any }
		if err := yaml.Unmarshal(b, &mesh); err != nil {
			return fmt.Errorf("mesh configuration %s: %w", p.flags.meshConfig, err)
		}
		overlay(pc, mesh.DefaultConfig)
	} else if !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("mesh configuration: %w", err)
	}
	for _, src := range []struct{ what, text string }{
		{"PROXY_CONFIG", p.env.str("PROXY_CONFIG", "")},
		{"annotation proxy.istio.io/config", p.annotations["proxy.istio.io/config"]},
	} {
		if strings.TrimSpace(src.text) == "" {
			continue
		}
		var m map[string]any
		if err := yaml.Unmarshal([]byte(src.text), &m); err != nil {
			return fmt.Errorf("%s: %w", src.what, err)
		}
		overlay(pc, m)
	}
	if a := p.annotations["sidecar.istio.io/discoveryAddress"]; a != "" {
		pc["discoveryAddress"] = a
	}
	if a := p.annotations["status.sidecar.istio.io/port"]; a != "" {
		n, err := strconv.Atoi(a)
		if err != nil {
			return fmt.Errorf("annotation status.sidecar.istio.io/port: %w", err)
		}
		pc["statusPort"] = float64(n)
	}
	if s, _ := pc["serviceCluster"].(string); s == "" || s == defaultCluster {
		if _, other := pc["tracingServiceName"]; other {
			delete(pc, "serviceCluster")
		} else {
			pc["serviceCluster"] = p.flags.serviceCluster
		}
	}
	for _, k := range []string{"statusPort", "proxyAdminPort"} {
		if n := number(pc, k); n < 0 || n > 65535 {
			return fmt.Errorf("%s of the proxy configuration: %v", k, pc[k])
		}
	}
	if number(pc, "concurrency") < 0 {
		return fmt.Errorf("concurrency of the proxy configuration: %v", pc["concurrency"])
	}
	c.ProxyConfig = pc
	return nil
}

// overlay replaces fields of dst by those of src; proxyMetadata is merged by
// key. Names may be in either of proto3 JSON's forms.
func overlay(dst, src map[string]any) {
	for k, v := range src {
		k = camel(k)
		if v == nil {
			continue
		}
		if add, ok := v.(map[string]any); ok && k == "proxyMetadata" {
			old, _ := dst[k].(map[string]any)
			all := make(map[string]any, len(old)+len(add))
			maps.Copy(all, old)
			for n, x := range add { // values are strings, whatever YAML makes of them
				all[n] = fmt.Sprint(x)
			}
			v = all
		}
		dst[k] = v
	}
}

func camel(s string) string {
	head, rest, ok := strings.Cut(s, "_")
	var headSb108 strings.Builder
	for ok {
		var word string
		word, rest, ok = strings.Cut(rest, "_")
		if word != "" {
			headSb108.WriteString(strings.ToUpper(word[:1]) + word[1:])
		}
	}
	head += headSb108.String()
	return head
}

func number(m map[string]any, key string) int {
	switch v := m[key].(type) {
	case float64:
		return int(v)
	case int64:
		return int(v)
	case string: // proto3 JSON allows numbers as strings
		n, _ := strconv.Atoi(v)
		return n
	}
	return 0
}

func duration(m map[string]any, key string) (time.Duration, error) {
	s, _ := m[key].(string)
	d, err := time.ParseDuration(s)
	if err != nil || d < 0 {
		return 0, fmt.Errorf("%s of the proxy configuration: %q is no duration", key, s)
	}
	return d, nil
}

// podInfo reads a file of the downward API: lines of key="quoted value". A
// file that isn't there is empty.
func (p *parser) podInfo(name string) (map[string]string, error) {
	file := path.Join(podInfoDir, name)
	b, err := p.in.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return map[string]string{}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("pod %s: %w", name, err)
	}
	m, err := parseDownwardAPI(string(b))
	if err != nil {
		return nil, fmt.Errorf("pod %s in %s: %w", name, file, err)
	}
	return m, nil
}

func parseDownwardAPI(s string) (map[string]string, error) {
	m := map[string]string{}
	for line := range strings.SplitSeq(s, "\n") {
		k, v, ok := strings.Cut(line, "=")
		if !ok {
			continue
		}
		u, err := strconv.Unquote(v)
		if err != nil {
			return nil, fmt.Errorf("value of %q is not quoted", k)
		}
		m[k] = u
	}
	return m, nil
}

// clean passes v through JSON, so that only JSON's own types are left.
func clean(v any) (map[string]any, error) {
	b, err := json.Marshal(v)
	if err != nil {
		return nil, err
	}
	var out map[string]any
	return out, json.Unmarshal(b, &out)
}
