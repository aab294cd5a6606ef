package format

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"net/url"
	"strconv"
	"strings"

	"github.com/fairlead-mesh/fairlead/internal/message"
	"github.com/fairlead-mesh/fairlead/internal/streaminfo"
)

func requestHeader(x *Context) *message.Header   { return x.Request }
func responseHeader(x *Context) *message.Header  { return x.Response }
func responseTrailer(x *Context) *message.Header { return x.Trailers }

func headerBytes(h *message.Header) int64 {
	if h == nil {
		return 0
	}
	n := 0
	for i := range h.Len() {
		f := h.At(i)
		n += len(f.Name) + len(f.Value)
	}
	return int64(n)
}

// headerNames parses "name" or "name?alternative".
func (c command) headerNames() (name, alt string, err error) {
	name, alt, _ = strings.Cut(c.sub, "?")
	if name == "" {
		return "", "", fmt.Errorf("wants the name of a header, %s(NAME)", c.name)
	}
	if strings.Contains(alt, "?") {
		return "", "", fmt.Errorf("more than one alternative in %q", c.sub)
	}
	return headerAlias(strings.ToLower(name)), headerAlias(strings.ToLower(alt)), nil
}

// headerAlias maps names to what message.Header calls them.
func headerAlias(name string) string {
	if name == "host" {
		return message.Authority
	}
	return name
}

func headerOp(of func(*Context) *message.Header) func(command) (op, error) {
	return func(c command) (op, error) {
		name, alt, err := c.headerNames()
		if err != nil {
			return op{}, err
		}
		return c.truncated(func(dst []byte, x *Context) ([]byte, bool) {
			v, ok := lookup(of(x), name, alt)
			return append(dst, v...), ok
		}), nil
	}
}

func lookup(h *message.Header, name, alt string) (string, bool) {
	if h == nil {
		return "", false
	}
	v, ok := h.Lookup(name)
	if !ok && alt != "" {
		v, ok = h.Lookup(alt)
	}
	return v, ok
}

func reqWithoutQuery(c command) (op, error) {
	name, alt, err := c.headerNames()
	if err != nil {
		return op{}, err
	}
	return c.truncated(func(dst []byte, x *Context) ([]byte, bool) {
		v, ok := lookup(x.Request, name, alt)
		v, _, _ = strings.Cut(v, "?")
		return append(dst, v...), ok
	}), nil
}

// pathOp is %PATH(X:Y):Z%: X is WQ or NQ (with, without query), Y one of ORIG,
// PATH, ORIG_OR_PATH.
func pathOp(c command) (op, error) {
	query, source, _ := strings.Cut(c.sub, ":")
	name, alt := "x-envoy-original-path", message.Path
	switch source {
	case "", "ORIG_OR_PATH":
	case "ORIG":
		alt = ""
	case "PATH":
		name, alt = message.Path, ""
	default:
		return op{}, fmt.Errorf("unknown source %q: want ORIG, PATH or ORIG_OR_PATH", source)
	}
	switch query {
	case "", "WQ", "NQ":
	default:
		return op{}, fmt.Errorf("unknown query option %q: want WQ or NQ", query)
	}
	return c.truncated(func(dst []byte, x *Context) ([]byte, bool) {
		v, ok := lookup(x.Request, name, alt)
		if query == "NQ" {
			v, _, _ = strings.Cut(v, "?")
		}
		return append(dst, v...), ok
	}), nil
}

func queryParam(c command) (op, error) {
	if c.sub == "" {
		return op{}, errors.New("wants the name of a parameter, QUERY_PARAM(NAME)")
	}
	return c.truncated(func(dst []byte, x *Context) ([]byte, bool) {
		if x.Request == nil {
			return dst, false
		}
		_, q, _ := strings.Cut(x.Request.Get(message.Path), "?")
		for q != "" {
			var kv string
			kv, q, _ = strings.Cut(q, "&")
			if k, v, _ := strings.Cut(kv, "="); k == c.sub {
				if u, err := url.PathUnescape(v); err == nil {
					v = u
				}
				return append(dst, v...), true
			}
		}
		return dst, false
	}), nil
}

func requestedServerName(c command) (op, error) {
	sni := func(x *Context) string {
		if x.Info == nil || x.Info.Conn == nil {
			return ""
		}
		return x.Info.Conn.RequestedServerName
	}
	host := func(x *Context) string {
		if x.Request == nil {
			return ""
		}
		return x.Request.Get(message.Authority)
	}
	first, second := sni, func(*Context) string { return "" }
	switch mode, _, _ := strings.Cut(c.sub, ":"); mode {
	case "", "SNI_ONLY":
	case "SNI_FIRST":
		second = host
	case "HOST_FIRST":
		first, second = host, sni
	default:
		return op{}, fmt.Errorf("unknown option %q: want SNI_ONLY, SNI_FIRST or HOST_FIRST", c.sub)
	}
	return c.truncated(func(dst []byte, x *Context) ([]byte, bool) {
		v := first(x)
		if v == "" {
			v = second(x)
		}
		return append(dst, v...), v != ""
	}), nil
}

var flagLongNames = [...]string{
	"FailedLocalHealthCheck", "NoHealthyUpstream", "UpstreamRequestTimeout", "LocalReset", "UpstreamRemoteReset",
	"UpstreamConnectionFailure", "UpstreamConnectionTermination", "UpstreamOverflow", "NoRouteFound", "DelayInjected",
	"FaultInjected", "RateLimited", "UnauthorizedExternalService", "RateLimitServiceError",
	"DownstreamConnectionTermination", "UpstreamRetryLimitExceeded", "StreamIdleTimeout", "InvalidEnvoyRequestHeaders",
	"DownstreamProtocolError", "UpstreamMaxStreamDurationReached", "ResponseFromCacheFilter", "NoFilterConfigFound",
	"DurationTimeout", "UpstreamProtocolError", "NoClusterFound", "OverloadManagerTerminated", "DnsResolutionFailed",
	"DropOverload", "DownstreamRemoteReset", "UnconditionalDropOverload",
}

// flagsOp writes the flags, joined by ",". No flag is "-", which is a value.
func flagsOp(long bool) func(command) (op, error) {
	return func(c command) (op, error) {
		return op{text: func(dst []byte, x *Context) ([]byte, bool) {
			if x.Info == nil || x.Info.Flags == 0 {
				return append(dst, '-'), true
			}
			for i, rest := x.Info.Flags.Next(); ; i, rest = rest.Next() {
				if long {
					dst = append(dst, flagLongNames[i]...)
				} else {
					dst = append(dst, streaminfo.ResponseFlag(1<<i).String()...)
				}
				if rest == 0 {
					return dst, true
				}
				dst = append(dst, ',')
			}
		}}, c.noArgument()
	}
}

var grpcNames = [...][2]string{
	{"OK", "OK"},
	{"Canceled", "CANCELLED"},
	{"Unknown", "UNKNOWN"},
	{"InvalidArgument", "INVALID_ARGUMENT"},
	{"DeadlineExceeded", "DEADLINE_EXCEEDED"},
	{"NotFound", "NOT_FOUND"},
	{"AlreadyExists", "ALREADY_EXISTS"},
	{"PermissionDenied", "PERMISSION_DENIED"},
	{"ResourceExhausted", "RESOURCE_EXHAUSTED"},
	{"FailedPrecondition", "FAILED_PRECONDITION"},
	{"Aborted", "ABORTED"},
	{"OutOfRange", "OUT_OF_RANGE"},
	{"Unimplemented", "UNIMPLEMENTED"},
	{"Internal", "INTERNAL"},
	{"Unavailable", "UNAVAILABLE"},
	{"DataLoss", "DATA_LOSS"},
	{"Unauthenticated", "UNAUTHENTICATED"},
}

// grpcStatus returns the gRPC status of a gRPC request.
func grpcStatus(x *Context) (int64, bool) {
	if x.Info == nil || !x.Info.IsGRPC {
		return 0, false
	}
	return GRPCStatus(x)
}

// GRPCStatus returns the gRPC status of any response, as Envoy derives it: from
// the trailers, else from the headers, else from the HTTP status. A malformed
// one is -1.
func GRPCStatus(x *Context) (int64, bool) {
	for _, h := range []*message.Header{x.Trailers, x.Response} {
		if v, ok := lookup(h, "grpc-status", ""); ok {
			n, err := strconv.ParseUint(v, 10, 32)
			if err != nil {
				return -1, true // Envoy's InvalidCode
			}
			return int64(n), true
		}
	}
	if x.Info == nil || x.Info.ResponseCode == 0 {
		return 0, false
	}
	return int64(GRPCFromHTTP(x.Info.ResponseCode)), true
}

// ParseGRPCStatus returns the number of a status by its name, "UNAVAILABLE".
func ParseGRPCStatus(name string) (int64, bool) {
	if name == "CANCELED" {
		return 1, true
	}
	for i, n := range grpcNames {
		if n[1] == name {
			return int64(i), true
		}
	}
	return 0, false
}

// GRPCFromHTTP maps an HTTP status to a gRPC one as Envoy's
// Grpc::Utility::httpToGrpcStatus does.
func GRPCFromHTTP(status int) int {
	switch status {
	case 400:
		return 13
	case 401:
		return 16
	case 403:
		return 7
	case 404:
		return 12
	case 429, 502, 503, 504:
		return 14
	}
	return 2
}

func grpcStatusOp(c command) (op, error) {
	form := 0
	switch c.sub {
	case "", "CAMEL_STRING":
	case "SNAKE_STRING":
		form = 1
	case "NUMBER":
		return number(grpcStatus), nil
	default:
		return op{}, fmt.Errorf("unknown form %q: want CAMEL_STRING, SNAKE_STRING or NUMBER", c.sub)
	}
	return op{text: func(dst []byte, x *Context) ([]byte, bool) {
		n, ok := grpcStatus(x)
		switch {
		case !ok:
			return dst, false
		case n >= 0 && n < int64(len(grpcNames)):
			return append(dst, grpcNames[n][form]...), true
		}
		return strconv.AppendInt(dst, n, 10), true
	}}, nil
}

// uniqueID is a random UUID, a new one each time.
func uniqueID(c command) (op, error) {
	return op{text: func(dst []byte, _ *Context) ([]byte, bool) {
		var u [16]byte
		_, _ = rand.Read(u[:]) // never fails since Go 1.24
		u[6], u[8] = u[6]&0x0f|0x40, u[8]&0x3f|0x80
		for i, part := range [...][2]int{{0, 4}, {4, 6}, {6, 8}, {8, 10}, {10, 16}} {
			if i > 0 {
				dst = append(dst, '-')
			}
			dst = hex.AppendEncode(dst, u[part[0]:part[1]])
		}
		return dst, true
	}}, c.noArgument()
}
