// How long a stage computes on a microbatch, as a function of what is in it.
#pragma once

#include <vector>

namespace millrace {

// What of a microbatch its cost depends on. Sums over segments, so that costs of candidates can be added up.
struct BatchFeatures {
  double decode_rows = 0;
  double prefill_rows = 0;
  double decode_attention = 0;  // sum over decode rows of the positions they attend to, their own included
  double prefill_attention =
      0;  // the same over prefill rows: a chunk of n after f tokens has n * f + n * (n + 1) / 2
  double sampled_rows = 0;

  double rows() const { return decode_rows + prefill_rows; }
  BatchFeatures& operator+=(const BatchFeatures& other);
  BatchFeatures Share(double parts) const;  // an even one of so many

  static BatchFeatures Decode(double context);  // one row that attends to `context` positions and is sampled
  static BatchFeatures Prefill(double first_position, double rows, bool sampled);
};

struct CostPoint {
  double x = 0;
  double seconds = 0;
};

// Straight lines through measured points, extended beyond the last with the slope of the last two (never
// below 0); the first point's value before the first. No points: 0.
double InterpolateCost(const std::vector<CostPoint>& points, double x);

// Seconds of one stage, from measurement or estimate.
struct StageCost {
  double fixed = 0;             // a microbatch
  std::vector<CostPoint> rows;  // its layers, by rows, without attention to the context; x strictly ascending
  double decode_attention = 0;  // a position attended to by a decode row
  double prefill_attention = 0;    // by a prefill row
  std::vector<CostPoint> sampled;  // output head, by sampled rows; 0 where none is sampled

  double Seconds(const BatchFeatures& features) const;
};

}  // namespace millrace
