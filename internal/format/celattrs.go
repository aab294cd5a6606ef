package format

import (
	"net/netip"
	"strconv"
	"strings"
	"time"

	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/common/types/ref"

	"github.com/fairlead-mesh/fairlead/internal/message"
	"github.com/fairlead-mesh/fairlead/internal/streaminfo"
)

type celAttribute = func(*Context) ref.Val

// celRoots are the names of Envoy's attributes
// (docs/root/intro/arch_overview/advanced/attributes.rst).
var celRoots = map[string]celAttribute{
	"request":      func(c *Context) ref.Val { return attributes(c, celRequest) },
	"response":     func(c *Context) ref.Val { return attributes(c, celResponse) },
	"connection":   func(c *Context) ref.Val { return attributes(c, celConnection) },
	"upstream":     func(c *Context) ref.Val { return attributes(c, celUpstream) },
	"source":       func(c *Context) ref.Val { return attributes(c, celSource) },
	"destination":  func(c *Context) ref.Val { return attributes(c, celDestination) },
	"metadata":     func(c *Context) ref.Val { return metadataMap(dynamicMetadata(c)) },
	"filter_state": filterStateMap,
	"xds":          func(c *Context) ref.Val { return attributes(c, celXDS) },
}

// str is an attribute that has no value if it is empty.
func str(s string) ref.Val { return stringOrNil(s, s != "") }

func requestField(name string) celAttribute {
	return func(c *Context) ref.Val { return stringOrNil(lookup(c.Request, name, "")) }
}

// info is an attribute of the stream's record.
func info(f func(*streaminfo.Info) ref.Val) celAttribute {
	return func(c *Context) ref.Val {
		if c.Info == nil {
			return nil
		}
		return f(c.Info)
	}
}

func conn(f func(*streaminfo.Conn) ref.Val) celAttribute {
	return func(c *Context) ref.Val {
		if c.Info == nil || c.Info.Conn == nil {
			return nil
		}
		return f(c.Info.Conn)
	}
}

func span(from, to time.Time) ref.Val {
	if from.IsZero() || to.IsZero() {
		return nil
	}
	return types.Duration{Duration: to.Sub(from)}
}

var celRequest = map[string]celAttribute{
	"path":      requestField(message.Path),
	"host":      requestField(message.Authority),
	"scheme":    requestField(message.Scheme),
	"method":    requestField(message.Method),
	"referer":   requestField("referer"),
	"useragent": requestField("user-agent"),
	"id":        requestField("x-request-id"),
	"url_path": func(c *Context) ref.Val {
		v, ok := lookup(c.Request, message.Path, "")
		v, _, _ = strings.Cut(v, "?")
		return stringOrNil(v, ok)
	},
	"query": func(c *Context) ref.Val {
		v, ok := lookup(c.Request, message.Path, "")
		_, v, _ = strings.Cut(v, "?")
		v, _, _ = strings.Cut(v, "#")
		return stringOrNil(v, ok)
	},
	"headers":       func(c *Context) ref.Val { return headerMap(c.Request) },
	"headers_bytes": func(c *Context) ref.Val { return types.Int(headerBytes(c.Request)) },
	"time": info(func(i *streaminfo.Info) ref.Val {
		return types.Timestamp{Time: i.Start}
	}),
	"duration": info(func(i *streaminfo.Info) ref.Val { return span(i.Start, i.End) }),
	"size": func(c *Context) ref.Val {
		if v, ok := lookup(c.Request, "content-length", ""); ok {
			n, err := strconv.ParseInt(v, 10, 64)
			if err != nil {
				return nil
			}
			return types.Int(n)
		}
		if c.Info == nil {
			return nil
		}
		return types.Int(c.Info.BytesReceived)
	},
	"total_size": func(c *Context) ref.Val {
		if c.Info == nil {
			return nil
		}
		return types.Int(int64(c.Info.BytesReceived) + headerBytes(c.Request))
	},
	"protocol": info(func(i *streaminfo.Info) ref.Val { return str(i.Protocol.String()) }),
}

var celResponse = map[string]celAttribute{
	"code": info(func(i *streaminfo.Info) ref.Val {
		if i.ResponseCode == 0 {
			return nil
		}
		return types.Int(i.ResponseCode)
	}),
	"code_details":  info(func(i *streaminfo.Info) ref.Val { return str(i.Details) }),
	"flags":         info(func(i *streaminfo.Info) ref.Val { return types.Int(i.Flags) }),
	"size":          info(func(i *streaminfo.Info) ref.Val { return types.Int(i.BytesSent) }),
	"headers":       func(c *Context) ref.Val { return headerMap(c.Response) },
	"trailers":      func(c *Context) ref.Val { return headerMap(c.Trailers) },
	"headers_bytes": func(c *Context) ref.Val { return types.Int(headerBytes(c.Response)) },
	"total_size": func(c *Context) ref.Val {
		if c.Info == nil {
			return nil
		}
		return types.Int(int64(c.Info.BytesSent) + headerBytes(c.Response) + headerBytes(c.Trailers))
	},
	"grpc_status": func(c *Context) ref.Val {
		n, ok := GRPCStatus(c)
		if !ok {
			return nil
		}
		return types.Int(n)
	},
	"backend_latency": info(func(i *streaminfo.Info) ref.Val {
		if i.Upstream.ServiceTime == 0 {
			return nil
		}
		return types.Duration{Duration: i.Upstream.ServiceTime}
	}),
}

var celConnection = withTLS(map[string]celAttribute{
	"mtls": func(c *Context) ref.Val {
		return types.Bool(c.Info != nil && c.Info.Conn != nil && c.Info.Conn.TLS != nil && c.Info.Conn.TLS.Peer.Present())
	},
	"requested_server_name": conn(func(c *streaminfo.Conn) ref.Val { return types.String(c.RequestedServerName) }),
	"id":                    conn(func(c *streaminfo.Conn) ref.Val { return types.Uint(c.ID) }),
	"termination_details": info(func(i *streaminfo.Info) ref.Val {
		if i.ConnectionTerminationDetails != "" || i.Conn == nil {
			return str(i.ConnectionTerminationDetails)
		}
		return str(i.Conn.TerminationDetails)
	}),
	"transport_failure_reason": conn(func(c *streaminfo.Conn) ref.Val { return str(c.TransportFailureReason) }),
}, func(c *Context) *streaminfo.TLS {
	if c.Info == nil || c.Info.Conn == nil {
		return nil
	}
	return c.Info.Conn.TLS
})

var celUpstream = withTLS(map[string]celAttribute{
	"address": info(func(i *streaminfo.Info) ref.Val { return str(i.Upstream.Host) }),
	"port": info(func(i *streaminfo.Info) ref.Val {
		if !i.Upstream.Address.IsValid() {
			return nil
		}
		return types.Int(i.Upstream.Address.Port())
	}),
	"local_address":            info(func(i *streaminfo.Info) ref.Val { return addr(i.Upstream.Local) }),
	"transport_failure_reason": info(func(i *streaminfo.Info) ref.Val { return str(i.Upstream.TransportFailureReason) }),
	"request_attempt_count":    info(func(i *streaminfo.Info) ref.Val { return types.Uint(i.AttemptCount) }),
	"locality":                 info(func(i *streaminfo.Info) ref.Val { return str(i.Upstream.Locality) }),
}, func(c *Context) *streaminfo.TLS {
	if c.Info == nil {
		return nil
	}
	return c.Info.Upstream.TLS
})

// withTLS adds the attributes of a TLS session.
func withTLS(m map[string]celAttribute, of func(*Context) *streaminfo.TLS) map[string]celAttribute {
	first := func(names []string) ref.Val {
		if len(names) == 0 {
			return nil
		}
		return types.String(names[0])
	}
	for name, f := range map[string]func(*streaminfo.TLS) ref.Val{
		"tls_version":                    func(t *streaminfo.TLS) ref.Val { return types.String(t.Version) },
		"subject_local_certificate":      func(t *streaminfo.TLS) ref.Val { return types.String(t.LocalCert.Subject) },
		"subject_peer_certificate":       func(t *streaminfo.TLS) ref.Val { return types.String(t.Peer.Subject) },
		"uri_san_local_certificate":      func(t *streaminfo.TLS) ref.Val { return first(t.LocalCert.URISANs) },
		"uri_san_peer_certificate":       func(t *streaminfo.TLS) ref.Val { return first(t.Peer.URISANs) },
		"dns_san_local_certificate":      func(t *streaminfo.TLS) ref.Val { return first(t.LocalCert.DNSSANs) },
		"dns_san_peer_certificate":       func(t *streaminfo.TLS) ref.Val { return first(t.Peer.DNSSANs) },
		"sha256_peer_certificate_digest": func(t *streaminfo.TLS) ref.Val { return str(t.Peer.Digest) },
	} {
		m[name] = func(c *Context) ref.Val {
			if t := of(c); t != nil {
				return f(t)
			}
			return nil
		}
	}
	return m
}

func addr(a netip.AddrPort) ref.Val {
	if !a.IsValid() {
		return nil
	}
	return types.String(netip.AddrPortFrom(a.Addr().Unmap(), a.Port()).String())
}

var celSource = map[string]celAttribute{
	"address": conn(func(c *streaminfo.Conn) ref.Val { return addr(c.Remote) }),
	"port": conn(func(c *streaminfo.Conn) ref.Val {
		if !c.Remote.IsValid() {
			return nil
		}
		return types.Int(c.Remote.Port())
	}),
}

var celDestination = map[string]celAttribute{
	"address": conn(func(c *streaminfo.Conn) ref.Val {
		if !c.Local.IsValid() {
			return str(c.LocalName)
		}
		return addr(c.Local)
	}),
	"port": conn(func(c *streaminfo.Conn) ref.Val {
		if !c.Local.IsValid() {
			return nil
		}
		return types.Int(c.Local.Port())
	}),
}

var celXDS = map[string]celAttribute{
	"cluster_name":           info(func(i *streaminfo.Info) ref.Val { return str(i.Upstream.ClusterRaw) }),
	"cluster_metadata":       info(func(i *streaminfo.Info) ref.Val { return metadataMap(i.Upstream.ClusterMetadata) }),
	"upstream_host_metadata": info(func(i *streaminfo.Info) ref.Val { return metadataMap(i.Upstream.HostMetadata) }),
	"route_name":             info(func(i *streaminfo.Info) ref.Val { return str(i.RouteName) }),
	"route_metadata":         info(func(i *streaminfo.Info) ref.Val { return metadataMap(i.RouteMetadata) }),
	"virtual_host_name":      info(func(i *streaminfo.Info) ref.Val { return str(i.VirtualHost) }),
	"virtual_host_metadata":  info(func(i *streaminfo.Info) ref.Val { return metadataMap(i.VirtualHostMetadata) }),
	"listener_metadata":      conn(func(c *streaminfo.Conn) ref.Val { return metadataMap(c.ListenerMetadata) }),
	"listener_direction":     conn(listenerDirection),
	"filter_chain_name":      conn(func(c *streaminfo.Conn) ref.Val { return str(c.FilterChainName) }),
}

// listenerDirection is a number of envoy.config.core.v3.TrafficDirection.
func listenerDirection(c *streaminfo.Conn) ref.Val {
	switch {
	case c.ListenerDirection == "inbound":
		return types.Int(1)
	case c.ListenerDirection == "outbound":
		return types.Int(2)
	case c.ListenerName == "":
		return nil
	}
	return types.Int(0)
}

// Attribute returns the value of one of the attributes' root names, "request",
// for c: a map of what is below it, which is read when it is asked for. It is nil
// for other names.
func Attribute(c *Context, root string) ref.Val {
	if f := celRoots[root]; f != nil {
		return f(c)
	}
	return nil
}
