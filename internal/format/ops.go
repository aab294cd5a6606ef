package format

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/fairlead-mesh/fairlead/internal/streaminfo"
)

// compile resolves the operator. An op without text is a constant.
func (c command) compile() (op, error) {
	if f, ok := strOps[c.name]; ok {
		return c.infoString(f)
	}
	if f, ok := numOps[c.name]; ok {
		return c.infoNumber(f)
	}
	if a, ok := addressOperator(c.name); ok {
		return c.address(a)
	}
	if f, ok := argOps[c.name]; ok {
		return f(c)
	}
	if o, ok, err := c.certificate(); ok {
		return o, err
	}
	if unsupported[c.name] {
		return op{}, errors.New("this operator of Envoy has no value in Fairlead: remove it from the format")
	}
	return op{}, errors.New("unknown operator")
}

// unsupported lists operators that Envoy knows and Fairlead has no data for.
var unsupported = map[string]bool{
	"BYTES_RETRANSMITTED": true, "PACKETS_RETRANSMITTED": true, "UPSTREAM_HEADER_BYTES_RECEIVED": true, "UPSTREAM_HEADER_BYTES_SENT": true,
	"DOWNSTREAM_HEADER_BYTES_RECEIVED": true, "DOWNSTREAM_HEADER_BYTES_SENT": true, "ROUNDTRIP_DURATION": true,
	"DOWNSTREAM_HANDSHAKE_DURATION": true, "REQUEST_TX_DURATION": true, "UPSTREAM_CONNECTION_ID": true,
	"TLS_JA3_FINGERPRINT": true, "TLS_JA4_FINGERPRINT": true, "CUSTOM_FLAGS": true,
	"DOWNSTREAM_DETECTED_CLOSE_TYPE": true, "UPSTREAM_DETECTED_CLOSE_TYPE": true,
	"UPSTREAM_LOCAL_CLOSE_REASON": true, "UPSTREAM_CONNECTION_POOL_READY_DURATION": true, "COALESCE": true,
	"UPSTREAM_HOSTS_ATTEMPTED": true,
}

// hostName is the name of the endpoint, or its address.
func hostName(i *streaminfo.Info) string {
	if i.Upstream.HostName != "" {
		return i.Upstream.HostName
	}
	return i.Upstream.Host
}

// withoutPort cuts a port off a name or address.
func withoutPort(host string) string {
	i := strings.LastIndexByte(host, ':')
	if i < 0 || strings.HasPrefix(host, "envoy://") {
		return host
	}
	if _, err := strconv.ParseUint(host[i+1:], 10, 16); err != nil {
		return host
	}
	return strings.TrimSuffix(strings.TrimPrefix(host[:i], "["), "]")
}

type infoFunc func(i *streaminfo.Info, c *streaminfo.Conn) string

// strOps are strings of the stream's record; "" is absent.
var strOps = map[string]infoFunc{
	"PROTOCOL":              func(i *streaminfo.Info, _ *streaminfo.Conn) string { return i.Protocol.String() },
	"UPSTREAM_PROTOCOL":     func(i *streaminfo.Info, _ *streaminfo.Conn) string { return i.Upstream.Protocol.String() },
	"RESPONSE_CODE_DETAILS": func(i *streaminfo.Info, _ *streaminfo.Conn) string { return i.Details },
	"CONNECTION_TERMINATION_DETAILS": func(i *streaminfo.Info, c *streaminfo.Conn) string {
		if i.ConnectionTerminationDetails != "" || c == nil {
			return i.ConnectionTerminationDetails
		}
		return c.TerminationDetails
	},
	"UPSTREAM_HOST":      func(i *streaminfo.Info, _ *streaminfo.Conn) string { return i.Upstream.Host },
	"UPSTREAM_HOST_NAME": func(i *streaminfo.Info, _ *streaminfo.Conn) string { return hostName(i) },
	"UPSTREAM_HOST_NAME_WITHOUT_PORT": func(i *streaminfo.Info, _ *streaminfo.Conn) string {
		return withoutPort(hostName(i))
	},
	"DOWNSTREAM_LOCAL_CLOSE_REASON": func(i *streaminfo.Info, _ *streaminfo.Conn) string { return i.LocalCloseReason() },
	"UPSTREAM_CLUSTER":              func(i *streaminfo.Info, _ *streaminfo.Conn) string { return i.Upstream.Cluster },
	"UPSTREAM_CLUSTER_RAW":          func(i *streaminfo.Info, _ *streaminfo.Conn) string { return i.Upstream.ClusterRaw },
	"UPSTREAM_TRANSPORT_FAILURE_REASON": func(i *streaminfo.Info, _ *streaminfo.Conn) string {
		return i.Upstream.TransportFailureReason
	},
	"DOWNSTREAM_TRANSPORT_FAILURE_REASON": func(_ *streaminfo.Info, c *streaminfo.Conn) string {
		if c == nil {
			return ""
		}
		return c.TransportFailureReason
	},
	"FILTER_CHAIN_NAME": func(_ *streaminfo.Info, c *streaminfo.Conn) string {
		if c == nil {
			return ""
		}
		return c.FilterChainName
	},
	"ROUTE_NAME":           func(i *streaminfo.Info, _ *streaminfo.Conn) string { return i.RouteName },
	"VIRTUAL_HOST_NAME":    func(i *streaminfo.Info, _ *streaminfo.Conn) string { return i.VirtualHost },
	"VIRTUAL_CLUSTER_NAME": func(*streaminfo.Info, *streaminfo.Conn) string { return "" },
	"STREAM_ID":            func(i *streaminfo.Info, _ *streaminfo.Conn) string { return i.RequestID },
	"TRACE_ID":             func(i *streaminfo.Info, _ *streaminfo.Conn) string { return i.TraceID },
	"SPAN_ID":              func(i *streaminfo.Info, _ *streaminfo.Conn) string { return i.SpanID },
}

func (c command) infoString(f infoFunc) (op, error) {
	if c.hasSub {
		return op{}, fmt.Errorf("takes no argument, has %q", c.sub)
	}
	return c.truncated(func(dst []byte, x *Context) ([]byte, bool) {
		if x.Info == nil {
			return dst, false
		}
		v := f(x.Info, x.Info.Conn)
		return append(dst, v...), v != ""
	}), nil
}

type numFunc func(x *Context) (int64, bool)

// numOps are numbers, typed as such in JSON.
var numOps = map[string]numFunc{
	"RESPONSE_CODE":                  func(x *Context) (int64, bool) { return int64(x.Info.ResponseCode), true },
	"BYTES_RECEIVED":                 func(x *Context) (int64, bool) { return int64(x.Info.BytesReceived), true },
	"BYTES_SENT":                     func(x *Context) (int64, bool) { return int64(x.Info.BytesSent), true },
	"DOWNSTREAM_WIRE_BYTES_RECEIVED": func(x *Context) (int64, bool) { return int64(x.Info.WireBytesReceived), true },
	"DOWNSTREAM_WIRE_BYTES_SENT":     func(x *Context) (int64, bool) { return int64(x.Info.WireBytesSent), true },
	"UPSTREAM_WIRE_BYTES_RECEIVED": func(x *Context) (int64, bool) {
		return upstreamWire(x, x.Info.Upstream.WireBytesReceived, x.Info.BytesSent)
	},
	"UPSTREAM_WIRE_BYTES_SENT": func(x *Context) (int64, bool) {
		return upstreamWire(x, x.Info.Upstream.WireBytesSent, x.Info.BytesReceived)
	},
	"UPSTREAM_REQUEST_ATTEMPT_COUNT": func(x *Context) (int64, bool) { return int64(x.Info.AttemptCount), true },
	"DURATION":                       duration,
	"REQUEST_DURATION":               func(x *Context) (int64, bool) { return between(x.Info.Start, x.Info.RequestComplete, time.Millisecond) },
	"RESPONSE_DURATION":              func(x *Context) (int64, bool) { return between(x.Info.Start, x.Info.FirstUpstreamRx, time.Millisecond) },
	"RESPONSE_TX_DURATION": func(x *Context) (int64, bool) {
		return between(x.Info.FirstUpstreamRx, responseSent(x), time.Millisecond)
	},
	"CONNECTION_ID": func(x *Context) (int64, bool) {
		if x.Info.Conn == nil {
			return 0, false
		}
		return int64(x.Info.Conn.ID), true
	},
	"REQUEST_HEADERS_BYTES":   func(x *Context) (int64, bool) { return headerBytes(x.Request), true },
	"RESPONSE_HEADERS_BYTES":  func(x *Context) (int64, bool) { return headerBytes(x.Response), true },
	"RESPONSE_TRAILERS_BYTES": func(x *Context) (int64, bool) { return headerBytes(x.Trailers), true },
	"GRPC_STATUS_NUMBER":      grpcStatus,
}

// upstreamWire is a number of bytes on the wire to upstream: counted, which is
// complete at the end, or relayed, if what goes on is what came.
func upstreamWire(x *Context, counted, relayed uint64) (int64, bool) {
	switch u := &x.Info.Upstream; {
	case u.Relayed:
		return int64(relayed), true
	case u.Unmetered, x.Info.End.IsZero():
		return 0, false
	}
	return int64(counted), true
}

// duration is the stream's duration, so far if it hasn't ended.
func duration(x *Context) (int64, bool) {
	end := x.Info.End
	if end.IsZero() {
		end = time.Now()
	}
	return between(x.Info.Start, end, time.Millisecond)
}

// between returns to-from in units; false if one of them is not known.
func between(from, to time.Time, unit time.Duration) (int64, bool) {
	if from.IsZero() || to.IsZero() {
		return 0, false
	}
	return int64(to.Sub(from) / unit), true
}

func (c command) infoNumber(f numFunc) (op, error) {
	if err := c.noArgument(); err != nil {
		return op{}, err
	}
	return number(f), nil
}

func number(f numFunc) op {
	text := func(dst []byte, x *Context) ([]byte, bool) {
		if x.Info == nil {
			return dst, false
		}
		n, ok := f(x)
		if !ok {
			return dst, false
		}
		return strconv.AppendInt(dst, n, 10), true
	}
	return op{text: text, json: text}
}

// argOps take arguments.
var argOps = map[string]func(command) (op, error){
	"REQ": headerOp(requestHeader), "REQUEST_HEADER": headerOp(requestHeader),
	"RESP": headerOp(responseHeader), "RESPONSE_HEADER": headerOp(responseHeader),
	"TRAILER": headerOp(responseTrailer), "RESPONSE_TRAILER": headerOp(responseTrailer),
	"REQ_WITHOUT_QUERY":     reqWithoutQuery,
	"PATH":                  pathOp,
	"QUERY_PARAM":           queryParam,
	"START_TIME":            startTime(func(x *Context) time.Time { return x.Info.Start }),
	"EMIT_TIME":             startTime(func(*Context) time.Time { return time.Now() }),
	"COMMON_DURATION":       commonDuration,
	"RESPONSE_FLAGS":        flagsOp(false),
	"RESPONSE_FLAGS_LONG":   flagsOp(true),
	"REQUESTED_SERVER_NAME": requestedServerName,
	"GRPC_STATUS":           grpcStatusOp,
	"DYNAMIC_METADATA":      metadataOp(dynamicMetadata),
	"CLUSTER_METADATA":      metadataOp(clusterMetadata),
	"UPSTREAM_METADATA":     metadataOp(hostMetadata),
	"METADATA":              anyMetadataOp,
	"FILTER_STATE":          filterStateOp(false),
	"UPSTREAM_FILTER_STATE": filterStateOp(true),
	"HOSTNAME":              hostnameOp,
	"ENVIRONMENT":           environmentOp,
	"LOCAL_REPLY_BODY":      localReplyBody,
	"ACCESS_LOG_TYPE":       logType,
	"UNIQUE_ID":             uniqueID,
	"CEL":                   celOp(false),
	"TYPED_CEL":             celOp(true),
}

func hostnameOp(c command) (op, error) {
	if c.hasSub {
		return op{}, c.noArgument()
	}
	h, err := os.Hostname()
	if err != nil || h == "" {
		h = "-"
	}
	return op{lit: string(c.truncate([]byte(h), 0))}, nil
}

func environmentOp(c command) (op, error) {
	if c.sub == "" {
		return op{}, errors.New("wants the name of a variable, ENVIRONMENT(NAME)")
	}
	v, ok := os.LookupEnv(c.sub)
	if !ok || v == "" {
		return op{text: func(dst []byte, _ *Context) ([]byte, bool) { return dst, false }}, nil
	}
	return op{lit: string(c.truncate([]byte(v), 0))}, nil
}

func localReplyBody(c command) (op, error) {
	return op{text: func(dst []byte, x *Context) ([]byte, bool) {
		return append(dst, x.LocalReplyBody...), true
	}}, c.noArgument()
}

func logType(c command) (op, error) {
	return op{text: func(dst []byte, x *Context) ([]byte, bool) {
		if x.LogType == "" {
			return append(dst, "NotSet"...), true
		}
		return append(dst, x.LogType...), true
	}}, c.noArgument()
}

// addrFunc returns an address, or its name if it is not an IP address.
type addrFunc func(i *streaminfo.Info, c *streaminfo.Conn) (netip.AddrPort, string)

var addrOps = map[string]addrFunc{
	"DOWNSTREAM_LOCAL":         downstreamLocal,
	"DOWNSTREAM_DIRECT_LOCAL":  downstreamLocal,
	"DOWNSTREAM_REMOTE":        func(_ *streaminfo.Info, c *streaminfo.Conn) (netip.AddrPort, string) { return c.Remote, "" },
	"DOWNSTREAM_DIRECT_REMOTE": func(_ *streaminfo.Info, c *streaminfo.Conn) (netip.AddrPort, string) { return c.DirectRemote, "" },
	"UPSTREAM_LOCAL":           func(i *streaminfo.Info, _ *streaminfo.Conn) (netip.AddrPort, string) { return i.Upstream.Local, "" },
	"UPSTREAM_REMOTE": func(i *streaminfo.Info, _ *streaminfo.Conn) (netip.AddrPort, string) {
		if u := &i.Upstream; u.Local.IsValid() || strings.HasPrefix(u.Host, "envoy://") {
			return u.Address, u.Host
		}
		return netip.AddrPort{}, "" // not connected
	},
}

func downstreamLocal(_ *streaminfo.Info, c *streaminfo.Conn) (netip.AddrPort, string) {
	return c.Local, c.LocalName
}

type addressOp struct {
	get  addrFunc
	part addressPart
}

type addressPart uint8

const (
	addrWhole addressPart = iota
	addrIP
	addrPort
)

// addressOperator resolves names like DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT.
func addressOperator(name string) (addressOp, bool) {
	for i, suffix := range [...]string{"_ADDRESS", "_ADDRESS_WITHOUT_PORT", "_PORT"} {
		if base, ok := strings.CutSuffix(name, suffix); ok {
			if get, ok := addrOps[base]; ok {
				return addressOp{get, addressPart(i)}, true
			}
		}
	}
	return addressOp{}, false
}

func (c command) address(a addressOp) (op, error) {
	if err := c.noArgument(); err != nil {
		return op{}, err
	}
	if a.part == addrPort {
		return number(func(x *Context) (int64, bool) {
			ap, _ := a.lookup(x)
			return int64(ap.Port()), ap.IsValid()
		}), nil
	}
	return op{text: func(dst []byte, x *Context) ([]byte, bool) {
		ap, name := a.lookup(x)
		switch {
		case !ap.IsValid():
			return append(dst, name...), name != ""
		case a.part == addrIP:
			return appendAddr(dst, ap.Addr().Unmap()), true
		}
		if a := ap.Addr().Unmap(); a.Is4() {
			return appendSmall(append(appendAddr(dst, a), ':'), uint(ap.Port())), true
		}
		return ap.AppendTo(dst), true
	}}, nil
}

// appendAddr is a.AppendTo, at a third of its price for IPv4.
func appendAddr(dst []byte, a netip.Addr) []byte {
	if !a.Is4() {
		return a.AppendTo(dst)
	}
	b := a.As4()
	for i, n := range b {
		if i > 0 {
			dst = append(dst, '.')
		}
		dst = appendSmall(dst, uint(n))
	}
	return dst
}

// appendSmall appends n < 100,000 in decimal.
func appendSmall(dst []byte, n uint) []byte {
	switch {
	case n < 10:
		return append(dst, byte('0'+n))
	case n < 100:
		return append(dst, byte('0'+n/10), byte('0'+n%10))
	case n < 1000:
		return append(dst, byte('0'+n/100), byte('0'+n/10%10), byte('0'+n%10))
	case n < 10000:
		return append(dst, byte('0'+n/1000), byte('0'+n/100%10), byte('0'+n/10%10), byte('0'+n%10))
	}
	return append(dst, byte('0'+n/10000), byte('0'+n/1000%10), byte('0'+n/100%10), byte('0'+n/10%10), byte('0'+n%10))
}

func (a addressOp) lookup(x *Context) (netip.AddrPort, string) {
	if x.Info == nil {
		return netip.AddrPort{}, ""
	}
	conn := x.Info.Conn
	if conn == nil {
		conn = &noConn
	}
	return a.get(x.Info, conn)
}

var noConn streaminfo.Conn // never written
