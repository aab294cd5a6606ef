package admin

import (
	"net"
	"net/http"
	"runtime"
	"runtime/metrics"
	"slices"
	"strconv"
	"strings"
)

// Cluster is one cluster of /clusters.
type Cluster struct {
	Name string
	// ObservabilityName is alt_stat_name, or Name.
	ObservabilityName string
	// Type is "STATIC", "EDS", …; EDSServiceName belongs to EDS.
	Type, EDSServiceName string
	AddedViaAPI          bool
	// Default and High are the circuit breaker limits by priority.
	Default, High Limits
	Hosts         []Host
}

// Limits are the thresholds of a circuit breaker.
type Limits struct {
	MaxConnections, MaxPendingRequests, MaxRequests, MaxRetries uint32
}

// Host is one endpoint of a cluster.
type Host struct {
	// Address is "ip:port" or "envoy://listener/endpoint".
	Address, Hostname string
	// Health flags, without "/"; none is healthy: "failed_active_hc",
	// "failed_outlier_check", "failed_eds_health", "degraded_eds_health".
	Health                []string
	Weight, Priority      uint32
	Region, Zone, SubZone string
	Canary                bool
	// SuccessRate is -1 if unknown.
	SuccessRate float64
	Stats       HostStats
}

// HostStats are counters and gauges of a host.
type HostStats struct {
	CxActive, CxConnectFail, CxTotal, RqActive, RqError, RqSuccess, RqTimeout, RqTotal uint64
}

func (h *HostStats) each(f func(name string, v uint64, gauge bool)) {
	f("cx_active", h.CxActive, true)
	f("cx_connect_fail", h.CxConnectFail, false)
	f("cx_total", h.CxTotal, false)
	f("rq_active", h.RqActive, true)
	f("rq_error", h.RqError, false)
	f("rq_success", h.RqSuccess, false)
	f("rq_timeout", h.RqTimeout, false)
	f("rq_total", h.RqTotal, false)
}

func (h *Host) health() string {
	if len(h.Health) == 0 {
		return "healthy"
	}
	return "/" + strings.Join(h.Health, "/")
}

func (s *Source) clusters(w http.ResponseWriter, r *http.Request) {
	cs := s.Clusters()
	slices.SortFunc(cs, func(a, b Cluster) int { return strings.Compare(a.Name, b.Name) })
	if r.URL.Query().Get("format") == "json" {
		writeJSON(w, clustersJSON(cs))
		return
	}
	text(w)
	for i := range cs {
		writeCluster(w, &cs[i])
	}
}

func writeCluster(w http.ResponseWriter, c *Cluster) {
	n := c.Name
	obs := c.ObservabilityName
	if obs == "" {
		obs = n
	}
	write(w, "%s::observability_name::%s\n", n, obs)
	for _, p := range []struct {
		name string
		l    Limits
	}{{"default_priority", c.Default}, {"high_priority", c.High}} {
		write(w, "%s::%s::max_connections::%d\n", n, p.name, p.l.MaxConnections)
		write(w, "%s::%s::max_pending_requests::%d\n", n, p.name, p.l.MaxPendingRequests)
		write(w, "%s::%s::max_requests::%d\n", n, p.name, p.l.MaxRequests)
		write(w, "%s::%s::max_retries::%d\n", n, p.name, p.l.MaxRetries)
	}
	write(w, "%s::added_via_api::%t\n", n, c.AddedViaAPI)
	if c.EDSServiceName != "" {
		write(w, "%s::eds_service_name::%s\n", n, c.EDSServiceName)
	}
	for i := range c.Hosts {
		h := &c.Hosts[i]
		line := func(name, value string) { write(w, "%s::%s::%s::%s\n", n, h.Address, name, value) }
		h.Stats.each(func(name string, v uint64, _ bool) { line(name, strconv.FormatUint(v, 10)) })
		line("hostname", h.Hostname)
		line("health_flags", h.health())
		line("weight", strconv.FormatUint(uint64(h.Weight), 10))
		line("region", h.Region)
		line("zone", h.Zone)
		line("sub_zone", h.SubZone)
		line("canary", strconv.FormatBool(h.Canary))
		line("priority", strconv.FormatUint(uint64(h.Priority), 10))
		rate := strconv.FormatFloat(h.SuccessRate, 'g', -1, 64)
		line("success_rate", rate)
		line("local_origin_success_rate", "-1")
	}
}

// object is a JSON object.
type object = map[string]any

func addressJSON(a string) object {
	if rest, ok := strings.CutPrefix(a, "envoy://"); ok {
		name, endpoint, _ := strings.Cut(rest, "/")
		return object{"envoy_internal_address": object{"server_listener_name": name, "endpoint_id": endpoint}}
	}
	host, port, err := net.SplitHostPort(a)
	n, perr := strconv.ParseUint(port, 10, 16)
	if err != nil || perr != nil {
		return object{"pipe": object{"path": a}}
	}
	return object{"socket_address": object{"address": host, "port_value": n}}
}

// clustersJSON is envoy.admin.v3.Clusters.
func clustersJSON(cs []Cluster) object {
	out := make([]any, len(cs))
	for i := range cs {
		c := &cs[i]
		hosts := make([]any, len(c.Hosts))
		for k := range c.Hosts {
			hosts[k] = hostJSON(&c.Hosts[k])
		}
		obs := c.ObservabilityName
		if obs == "" {
			obs = c.Name
		}
		j := object{"name": c.Name, "added_via_api": c.AddedViaAPI, "observability_name": obs, "circuit_breakers": object{"thresholds": []any{
			thresholds("DEFAULT", c.Default), thresholds("HIGH", c.High),
		}}, "host_statuses": hosts}
		if c.EDSServiceName != "" {
			j["eds_service_name"] = c.EDSServiceName
		}
		out[i] = j
	}
	return object{"cluster_statuses": out}
}

func thresholds(priority string, l Limits) object {
	return object{
		"priority": priority, "max_connections": l.MaxConnections, "max_pending_requests": l.MaxPendingRequests,
		"max_requests": l.MaxRequests, "max_retries": l.MaxRetries,
	}
}

func hostJSON(h *Host) object {
	var st []any
	h.Stats.each(func(name string, v uint64, gauge bool) {
		o := object{"name": name, "value": strconv.FormatUint(v, 10)}
		if gauge {
			o["type"] = "GAUGE"
		}
		st = append(st, o)
	})
	status := object{}
	eds := "HEALTHY"
	for _, f := range h.Health {
		switch f {
		case "failed_eds_health":
			eds = "UNHEALTHY"
		case "degraded_eds_health":
			eds = "DEGRADED"
		default:
			status[f] = true
		}
	}
	status["eds_health_status"] = eds
	return object{
		"address": addressJSON(h.Address), "stats": st, "health_status": status, "weight": h.Weight, "priority": h.Priority,
		"hostname": h.Hostname, "locality": object{"region": h.Region, "zone": h.Zone, "sub_zone": h.SubZone},
	}
}

// listenersJSON is envoy.admin.v3.Listeners.
func listenersJSON(ls []Listener) object {
	out := make([]any, len(ls))
	for i, l := range ls {
		o := object{"name": l.Name}
		if len(l.Addresses) > 0 {
			o["local_address"] = addressJSON(l.Addresses[0])
		}
		if len(l.Addresses) > 1 {
			var more []any
			for _, a := range l.Addresses[1:] {
				more = append(more, addressJSON(a))
			}
			o["additional_local_addresses"] = more
		}
		out[i] = o
	}
	return object{"listener_statuses": out}
}

// memory is envoy.admin.v3.Memory of the Go runtime.
func memory(w http.ResponseWriter, _ *http.Request) {
	samples := []metrics.Sample{
		{Name: "/memory/classes/heap/objects:bytes"},
		{Name: "/memory/classes/total:bytes"},
		{Name: "/memory/classes/heap/free:bytes"},
		{Name: "/memory/classes/heap/released:bytes"},
	}
	metrics.Read(samples)
	v := func(i int) string {
		if samples[i].Value.Kind() != metrics.KindUint64 {
			return "0"
		}
		return strconv.FormatUint(samples[i].Value.Uint64(), 10)
	}
	writeJSON(w, object{
		"allocated": v(0), "heap_size": v(1), "pageheap_free": v(2), "pageheap_unmapped": v(3), "goroutines": strconv.Itoa(runtime.NumGoroutine()),
	})
}
