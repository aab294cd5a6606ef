// Package decode turns a filter's typed_config into its proto message and
// finds what the message says that this build does not know.
package decode

import (
	"errors"
	"fmt"
	"time"

	corev3pb "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	routev3pb "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	typev3pb "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/internal/ratelimit"
)

// Into decodes a into m and reports unknown fields to d as ignored.
func Into(a filters.Any, m proto.Message, d *filters.Decoding) error {
	if err := unmarshal(a, m); err != nil {
		return err
	}
	unknown(m.ProtoReflect(), "", func(path string) {
		d.Ignore(path, "field is unknown to this version")
	})
	return nil
}

// Strict is Into for security filters: an unknown field is an error, because
// what it restricts would be lost.
func Strict(a filters.Any, m proto.Message) error {
	if err := unmarshal(a, m); err != nil {
		return err
	}
	var errs []error
	unknown(m.ProtoReflect(), "", func(path string) {
		errs = append(errs, fmt.Errorf("%s: field is unknown to this version", path))
	})
	return errors.Join(errs...)
}

// IgnoreSet reports each of the fields of m that is set, with one reason. It
// panics if m has no field of that name.
func IgnoreSet(d *filters.Decoding, m proto.Message, reason string, fields ...protoreflect.Name) {
	r := m.ProtoReflect()
	for _, name := range fields {
		f := r.Descriptor().Fields().ByName(name)
		if f == nil {
			panic("decode: " + string(r.Descriptor().FullName()) + " has no field " + string(name))
		}
		if r.Has(f) {
			d.Ignore(string(name), reason)
		}
	}
}

func unmarshal(a filters.Any, m proto.Message) error {
	var err error
	if a.JSON {
		err = protojson.Unmarshal(a.Value, m)
	} else {
		err = proto.Unmarshal(a.Value, m)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", m.ProtoReflect().Descriptor().FullName(), err)
	}
	return nil
}

func unknown(m protoreflect.Message, path string, report func(path string)) {
	if n := len(m.GetUnknown()); n > 0 {
		report(join(path, fmt.Sprintf("<unknown, %d bytes>", n)))
	}
	m.Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		p := join(path, string(f.Name()))
		switch {
		case f.IsMap():
			if f.MapValue().Message() == nil {
				return true
			}
			v.Map().Range(func(k protoreflect.MapKey, v protoreflect.Value) bool {
				unknown(v.Message(), fmt.Sprintf("%s[%s]", p, k.String()), report)
				return true
			})
		case f.Message() == nil:
		case f.IsList():
			for i := range v.List().Len() {
				unknown(v.List().Get(i).Message(), fmt.Sprintf("%s[%d]", p, i), report)
			}
		default:
			unknown(v.Message(), p, report)
		}
		return true
	})
}

func join(path, name string) string {
	if path == "" {
		return name
	}
	return path + "." + name
}

// Duration converts a proto duration; nil is def. It rejects negative ones.
func Duration(d *durationpb.Duration, def time.Duration) (time.Duration, error) {
	if d == nil {
		return def, nil
	}
	if err := d.CheckValid(); err != nil {
		return 0, err
	}
	v := d.AsDuration()
	if v < 0 {
		return 0, fmt.Errorf("duration %s is negative", v)
	}
	return v, nil
}

// Struct converts a Struct to what streaminfo.Metadata holds.
func Struct(s *structpb.Struct) map[string]any { return s.AsMap() }

// PartsPerMillion converts a FractionalPercent; nil is def.
func PartsPerMillion(p *typev3pb.FractionalPercent, def uint32) (uint32, error) {
	if p == nil {
		return def, nil
	}
	var n uint64
	switch p.GetDenominator() {
	case typev3pb.FractionalPercent_HUNDRED:
		n = uint64(p.GetNumerator()) * 10_000
	case typev3pb.FractionalPercent_TEN_THOUSAND:
		n = uint64(p.GetNumerator()) * 100
	case typev3pb.FractionalPercent_MILLION:
		n = uint64(p.GetNumerator())
	default:
		return 0, fmt.Errorf("denominator %d is not supported", p.GetDenominator())
	}
	return uint32(min(n, 1_000_000)), nil
}

// RuntimePartsPerMillion converts a RuntimeFractionalPercent. There is no
// runtime: the default value counts, and a runtime_key is reported.
func RuntimePartsPerMillion(p *corev3pb.RuntimeFractionalPercent, def uint32, path string, d *filters.Decoding) (uint32, error) {
	if p == nil {
		return def, nil
	}
	if p.GetRuntimeKey() != "" {
		d.Ignore(path+".runtime_key", "there is no runtime; the default value is used")
	}
	return PartsPerMillion(p.GetDefaultValue(), def)
}

// maxRetries bounds the repetitions of a callout.
const maxRetries = 64

// Retry converts the retry policy of a callout; nil is none. path is for d. Conditions
// are always those of Envoy's default.
func Retry(m *corev3pb.RetryPolicy, path string, d *filters.Decoding) (*filters.Retry, error) {
	if m == nil {
		return nil, nil //nolint:nilnil // nothing is repeated
	}
	r := &filters.Retry{Times: 1, Base: time.Second}
	if n := m.GetNumRetries(); n != nil {
		r.Times = int(min(n.GetValue(), maxRetries))
	}
	var err error
	if b := m.GetRetryBackOff(); b != nil {
		if r.Base, err = Duration(b.GetBaseInterval(), 0); err != nil || r.Base <= 0 {
			return nil, errors.New("retry_back_off.base_interval: must be greater than 0")
		}
	}
	if r.Max, err = Duration(m.GetRetryBackOff().GetMaxInterval(), 10*r.Base); err != nil || r.Max < r.Base {
		return nil, errors.New("retry_back_off.max_interval: must not be less than base_interval")
	}
	if m.GetRetryOn() != "" {
		d.Ignore(path+".retry_on", "what is repeated are failed calls, 5xx and gRPC's UNAVAILABLE")
	}
	if m.GetRetryPriority() != nil || len(m.GetRetryHostPredicate()) > 0 || m.GetHostSelectionRetryMaxAttempts() != 0 {
		d.Ignore(path, "endpoints are chosen for a repetition as for the first attempt")
	}
	return r, nil
}

// GRPCRetry converts the retry policy of a gRPC service, which may stand in two
// places.
func GRPCRetry(m *corev3pb.GrpcService, d *filters.Decoding) (*filters.Retry, error) {
	if m.GetEnvoyGrpc().GetMaxReceiveMessageLength() != nil {
		d.Ignore("grpc_service.envoy_grpc.max_receive_message_length", "answers have a bound of their own")
	}
	policy, path := m.GetRetryPolicy(), "grpc_service.retry_policy"
	if policy == nil {
		policy, path = m.GetEnvoyGrpc().GetRetryPolicy(), "grpc_service.envoy_grpc.retry_policy"
	}
	r, err := Retry(policy, path, d)
	if err != nil {
		return nil, fmt.Errorf("%s.%w", path, err)
	}
	return r, nil
}

// RateLimits converts the rate_limits of a rate limit filter, which stand for those
// of routes and virtual hosts. Envoy, too, refuses here what only those of
// routes may have. It returns nil if there are none.
func RateLimits(ms []*routev3pb.RateLimit, d *filters.Decoding) (*ratelimit.Policy, error) {
	if len(ms) == 0 {
		return nil, nil //nolint:nilnil // the documented "none"
	}
	p := &ratelimit.Policy{}
	for i, m := range ms {
		at := fmt.Sprintf("rate_limits[%d].", i)
		switch {
		case m.GetStage() != nil:
			return nil, errors.New(at + "stage: is not supported here")
		case m.GetDisableKey() != "":
			return nil, errors.New(at + "disable_key: is not supported here")
		case m.GetLimit() != nil:
			return nil, errors.New(at + "limit: is not supported here")
		}
		for j, a := range m.GetActions() {
			if a.GetDynamicMetadata() != nil {
				return nil, fmt.Errorf("%sactions[%d].dynamic_metadata: is not supported here, use metadata", at, j)
			}
		}
		l, err := ratelimit.FromProto(m)
		if err != nil {
			return nil, fmt.Errorf("%s%w", at, err)
		}
		if m.GetXRatelimitOption() != routev3pb.RateLimit_UNSPECIFIED {
			d.Ignore(at+"x_ratelimit_option", "enable_x_ratelimit_headers of the filter applies")
		}
		p.Route = append(p.Route, l)
	}
	return p, nil
}
