import java.util.ArrayList;
import java.util.List;
import org.apache.spark.api.java.JavaPairRDD;
import org.apache.spark.api.java.JavaSparkContext;
import org.apache.spark.sql.SparkSession;
import scala.Tuple2;

/** A small Spark application of the JVM with real shuffles: SparkGrind STEPS ROUNDS. */
public final class SparkGrind {
  private static double grind(int seed, long steps) {
    double total = 0;
    for (long step = 0; step < steps; step++) {
      total += Math.sin(seed + step) * Math.cos(step);
    }
    return total;
  }

  public static void main(String[] arguments) {
    long steps = Long.parseLong(arguments[0]);
    int rounds = Integer.parseInt(arguments[1]);
    SparkSession spark = SparkSession.builder().getOrCreate();
    JavaSparkContext context = new JavaSparkContext(spark.sparkContext());
    List<Integer> numbers = new ArrayList<>();
    for (int number = 0; number < 12; number++) {
      numbers.add(number);
    }
    for (int round = 0; round < rounds; round++) {
      JavaPairRDD<Integer, Double> ground =
          context.parallelize(numbers, 12).mapToPair(n -> new Tuple2<>(n % 4, grind(n, steps)));
      if (ground.reduceByKey(Double::sum, 2).collect().size() != 4) {
        throw new IllegalStateException("a key is missing");
      }
    }
    spark.stop();
  }
}
